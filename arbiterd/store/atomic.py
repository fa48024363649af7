"""Replacing a file: whole or not at all.

The bytes go under a temporary name that nobody else can read, the mode and the group are set there, then
one rename puts them in place. A reader, and a daemon that starts after a SIGKILL or a power cut, finds
the old file or the new one. A temporary file that a killed writer left is never read and is replaced by
the next write.
"""

from __future__ import annotations

import errno
import grp
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from arbiterd.files import unwritten
from arbiterd.files.owned import NotTrusted, open_folder

OWN_FILE = 0o640  # the daemon's alone, and operators may read it


def write(
    path: Path, data: bytes, *, mode: int = OWN_FILE, group: str = "", sync: bool = False
) -> None:
    """Write a file of the daemon's own. A link of that name is replaced, never written through.

    ``mode`` is set on the file, whatever the umask; ``group``: its group by name, where the process may
    give it. ``sync``: file and folder are flushed to the disk, for what must outlive a power cut
    (state_dir). A file that could not be written is tried again (files/unwritten.py).

    Raises:
        NotTrusted: its folder is a link.
        OSError: it cannot be written; the old file is untouched.

    """
    try:
        folder = open_folder(path.parent)
        try:
            ready = partial(_own, mode=mode, group=group)
            _put(folder, path.name, f".{path.name}.new", data, ready, sync=sync)
        finally:
            os.close(folder)
    except NotTrusted:
        raise
    except OSError as error:
        again = partial(write, path, data, mode=mode, group=group, sync=sync)
        unwritten.failed(path, error, again)
        raise
    unwritten.written(path)


def rewrite(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file of the operator's: owner, mode, access lists and labels stay as they are. A link
    stays, too: what it names is written. ``mode``: of a file that is not there yet. Always synced.

    Raises:
        OSError: it cannot be written, or its owner could not be kept; the old file is untouched.

    """
    real = Path(os.path.realpath(path))
    folder = open_folder(real.parent)
    try:
        temporary = f".{real.name}.{os.getpid()}.new"  # two commands at once do not meet
        ready = partial(_as_before, real=real, mode=mode)
        try:
            _put(folder, real.name, temporary, data, ready, sync=True)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _in_place(real, data)
    finally:
        os.close(folder)


def _put(
    folder: int,
    name: str,
    temporary: str,
    data: bytes,
    ready: Callable[[int], None],
    *,
    sync: bool,
) -> None:
    """``ready`` gives the open temporary file its owner and mode."""
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            ready(fd)
            if sync:
                os.fsync(fd)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    if sync:
        with suppress(OSError):  # the rename itself; some file systems cannot flush a folder
            os.fsync(folder)


def _own(fd: int, *, mode: int, group: str) -> None:
    """Without CAP_CHOWN only a group of our own can be given: the file keeps the one it has."""
    if group:
        with suppress(KeyError, PermissionError):
            os.fchown(fd, -1, grp.getgrnam(group).gr_gid)
    os.fchmod(fd, mode)


def _as_before(fd: int, *, real: Path, mode: int) -> None:
    try:
        old = real.stat()
    except FileNotFoundError:
        os.fchmod(fd, mode)
        return
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))
    with suppress(OSError):
        for name in os.listxattr(real):
            with suppress(OSError):
                os.setxattr(fd, name, os.getxattr(real, name))


def _in_place(real: Path, data: bytes) -> None:
    """The file itself is a mount point (a container): nothing can be renamed over it."""
    with real.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
