"""Files that the daemon acts on: read without following a link, and believed only when nobody but root
(or the daemon's own user) could have written them.

What lies in state_dir and runtime_dir decides what is adopted, signalled and stopped. A file that
another user could have put or changed there is refused and told; it is never obeyed.
"""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import socket
import stat
from pathlib import Path
from typing import BinaryIO

from arbiterd.errors import ArbiterError

MAX_BYTES = 32 * 1024 * 1024  # a thousand times what any of these files has had
_WRITERS = 0o022


class NotTrusted(OSError):
    """Another user could have written this. ``str`` says who, and what would be right."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "not trusted"


class FolderRefused(ArbiterError):
    """A folder of state belongs to another user."""


def trusted_uids() -> frozenset[int]:
    """Users whose files this process believes: root, and the one it runs as."""
    return frozenset({0, os.geteuid()})


def why_not(found: os.stat_result) -> str:
    """Why a file with this owner and mode is not believed, "" when it is."""
    if found.st_uid not in trusted_uids():
        return f"it belongs to {_name(found.st_uid)}, not to {_name(os.geteuid())}"
    if found.st_mode & _WRITERS:
        return f"others may write it (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def read_owned(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The whole file: a regular one, with one name, that nobody else can write.

    Raises:
        NotTrusted: another user could have written it, it is a link, or it is too large.
        OSError: it cannot be read (FileNotFoundError: it is not there).

    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    folder = open_folder(path.parent)
    try:
        fd = os.open(path.name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            msg = f"{path} is not trusted: it is a symbolic link"
            raise NotTrusted(msg) from None
        raise
    finally:
        os.close(folder)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        why = "it is no regular file" if not stat.S_ISREG(found.st_mode) else why_not(found)
        if not why and found.st_nlink > 1:
            why = f"it has {found.st_nlink} names (hard links)"
        if not why and found.st_size > limit:
            why = f"it is larger than {limit} bytes"
        if why:
            msg = f"{path} is not trusted: {why}"
            raise NotTrusted(msg)
        return file.read(limit)


def open_folder(path: Path) -> int:
    """A descriptor of this folder; its own name may be no link. Close it.

    Raises:
        NotTrusted: it is a link.
        OSError: it cannot be opened.

    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            msg = f"{path} is not trusted: it is a symbolic link"
            raise NotTrusted(msg) from None
        raise


def open_log(path: Path) -> BinaryIO:
    """A file that output is appended to, made when it is missing.

    Raises:
        NotTrusted: its folder is a link.
        OSError: it cannot be opened, or is a link.

    """
    folder = open_folder(path.parent)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(path.name, flags, 0o640, dir_fd=folder), "ab")
    finally:
        os.close(folder)


def top(path: Path) -> Path:
    """state_dir or runtime_dir itself may be a link (state on another disk) when root, or the daemon's
    user, made it: where it leads. Any other path is returned as it is.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return path
    if stat.S_ISLNK(found.st_mode) and found.st_uid in trusted_uids():
        return Path(os.path.realpath(path))
    return path


def claim(path: Path) -> str:
    """Make a folder of state where it is missing, and take write permission from everybody else.
    Returns what was wrong with its mode, "" for nothing.

    Raises:
        FolderRefused: another user owns the folder, or the link to it.
        OSError: it cannot be made.

    """
    real = top(path)
    if real.is_symlink():
        raise FolderRefused(_refusal(path, os.lstat(path).st_uid))
    for one in reversed([one for one in (real, *real.parents) if not one.exists()]):
        one.mkdir(exist_ok=True)
        one.chmod(0o755)  # whatever the umask: engines pass through runtime_dir
    fd = open_folder(real)
    try:
        found = os.fstat(fd)
        if found.st_uid not in trusted_uids():
            raise FolderRefused(_refusal(path, found.st_uid))
        if not found.st_mode & _WRITERS:
            return ""
        was = stat.S_IMODE(found.st_mode)
        try:
            os.fchmod(fd, was & ~_WRITERS & 0o1777)
        except PermissionError:
            return f"{path}: others may write to it (mode {was:04o}); chmod go-w {path}"
    finally:
        os.close(fd)
    return f"{path}: others could write to it (mode {was:04o}); write permission removed"


def _refusal(path: Path, uid: int) -> str:
    where = shlex.quote(str(path))
    return (
        f"{path} belongs to {_name(uid)}: the daemon acts on what lies there, so only "
        f"{_name(os.geteuid())} may write to it; chown -h {os.geteuid()} {where} && chmod go-w {where}"
    )


def connect(sock: socket.socket, path: Path | str) -> None:
    """Connect to a unix socket at exactly this name: a service's user that puts a link there would
    send our words to another service.

    Raises:
        OSError: nobody listens there, or it is a link.

    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTSOCK, "it is no socket", str(path))
        sock.connect(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
