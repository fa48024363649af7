"""Who could change what root runs or reads: every name on the way to a file, links followed one by one.

A file is as safe as the least safe folder above it, and as every link that leads to it: who may write
to a folder may put another file, or another folder, under the same name.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LINKS_MAX = 40  # as the kernel


@dataclass(frozen=True, slots=True)
class Weak:
    """A name on the way that others may change. ``who``: 'user alice', 'group staff', 'every user'.
    ``mend``: the command that closes it.
    """

    path: str
    who: str
    mend: str


def weak(path: str, trusted: Collection[int] = (0,)) -> tuple[Weak, ...]:
    """What on the way to ``path``, and ``path`` itself, users other than ``trusted`` may write. A name
    that is not there (yet) counts by the folders above it.
    """
    found: list[Weak] = []
    for name, info in _steps(path):
        found += _weak(name, info, trusted)
    return tuple(dict.fromkeys(found))


def only_root_writes(program: str) -> bool:
    """Whether this file, the interpreter of a script, and all on the way to both are root's alone."""
    if not os.path.exists(program) or weak(program):
        return False
    used = interpreter(Path(os.path.realpath(program)))
    return used is None or only_root_writes(str(used))


def interpreter(program: Path) -> Path | None:
    """What a script is run by, None for a binary."""
    if not program.is_file():  # a FIFO would be waited for
        return None
    with suppress(OSError, UnicodeDecodeError, IndexError), program.open("rb") as stream:
        first = stream.readline(300)
        if first.startswith(b"#!"):
            return Path(first[2:].decode().split()[0])
    return None


def tool(name: str, path: str = TOOLS) -> str | None:
    """Where a program of the system is, for us to run: never by our caller's PATH. For root only one
    that nobody else can change. None: there is none. ``path``: folders, joined by colons.
    """
    for folder in path.split(":"):
        program = f"{folder}/{name}"
        if os.access(program, os.X_OK) and (os.geteuid() != 0 or only_root_writes(program)):
            return program
    return None


def environ() -> dict[str, str]:
    """The environment of a tool that we run: no PATH, no library and no home of our caller's when we are
    root (`sudo` keeps HOME on some hosts: docker would run the plugins that lie there).
    """
    home = os.environ.get("HOME", "/")
    if os.geteuid() == 0:
        with suppress(KeyError):
            home = pwd.getpwuid(0).pw_dir
    return {"PATH": TOOLS, "HOME": home, "LANG": "C.UTF-8"}


def own_environ() -> dict[str, str]:
    """The environment of a child of our own program. As root without what would make the loader take a
    library from where another user can write.
    """
    out = dict(os.environ)
    if os.geteuid() != 0:
        return out
    for name in ("LD_PRELOAD", "LD_AUDIT"):
        out.pop(name, None)
    folders = out.pop("LD_LIBRARY_PATH", "").split(":")
    kept = [one for one in folders if one.startswith("/") and not weak(one)]
    return {**out, "LD_LIBRARY_PATH": ":".join(kept)} if kept else out


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each name that the kernel passes on its way, the root folder first, links and their targets both."""
    left = os.path.join(os.getcwd(), path).split("/")
    here, links = "/", 0
    with suppress(OSError):
        yield here, os.lstat(here)
        while left:
            part = left.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                here = os.path.dirname(here)
                continue
            name = os.path.join(here, part)
            info = os.lstat(name)
            yield name, info
            if not stat.S_ISLNK(info.st_mode):
                here = name
                continue
            links += 1
            if links > _LINKS_MAX:
                return
            target = os.readlink(name)
            if target.startswith("/"):
                here = "/"
            left = [*target.split("/"), *left]


def _weak(name: str, info: os.stat_result, trusted: Collection[int]) -> Iterator[Weak]:
    quoted = shlex.quote(name)
    link = stat.S_ISLNK(info.st_mode)
    if info.st_uid not in trusted:
        owner = "chown -h root:" if link else "chown root:"
        yield Weak(name, f"user {user_name(info.st_uid)}", f"{owner} {quoted}")
    if link:
        return  # a link has no mode; the folder that it lies in is looked at
    if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX:
        return  # /tmp: nobody replaces what belongs to another, and its owner is looked at
    if info.st_mode & stat.S_IWOTH:
        yield Weak(name, "every user", f"chmod go-w {quoted}")
    elif info.st_mode & stat.S_IWGRP:
        yield Weak(name, f"group {group_name(info.st_gid)}", f"chmod g-w {quoted}")


def user_name(uid: int) -> str:
    """Login name, 'uid N' without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_name(gid: int) -> str:
    """A group's name, 'gid N' without one."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"
