"""Doing something as another user, in a child that has nothing of root's any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

NOBODY = 65534


def as_user(uid: int, gid: int, groups: Sequence[int], do: Callable[[], str]) -> str:
    """What ``do`` returns there; a text that begins with 'raised' when it fails. Needs root."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            text = do()
        except BaseException as error:
            text = f"raised {error!r}"
        os.write(write, text.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text
