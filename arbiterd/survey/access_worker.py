"""Whether a user may reach files, asked of the kernel: ``python -m arbiterd.survey.access_worker``.

A process of its own: it becomes that user and never comes back. Reads one JSON object,
``{"uid", "gid", "groups", "bare", "wants": [[path, "rwx"], ...]}``, and answers with the list of what
stands in the way: ``[path, need]`` or null. ``bare`` takes every capability away first: root as the
daemon's unit has it.

This module imports the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from typing import Any

_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two 32-bit words per set
_MODES = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}


def _drop_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _obstacle(path: str, needs: str) -> list[str] | None:
    """The first folder that may not be passed, else the need that the path itself does not meet."""
    parts = path.rstrip("/").split("/")
    for end in range(1, len(parts)):
        folder = "/".join(parts[:end]) or "/"
        if not os.access(folder, os.X_OK):
            return [folder, "x" if _there(folder) else "?"]
    if not _there(path):
        return [path, "?"]
    for need in needs:
        if not os.access(path, _MODES[need]):
            return [path, need]
    return None


def _there(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def main() -> int:
    """Become the user, look, answer."""
    asked: dict[str, Any] = json.load(sys.stdin)
    if asked["uid"] is not None and os.geteuid() == 0:
        os.setgroups(asked["groups"])
        os.setresgid(asked["gid"], asked["gid"], asked["gid"])
        os.setresuid(asked["uid"], asked["uid"], asked["uid"])
    if asked["bare"]:
        _drop_capabilities()
    json.dump([_obstacle(path, needs) for path, needs in asked["wants"]], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
