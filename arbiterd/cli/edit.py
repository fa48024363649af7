"""Editing the mode line of the configuration file: that line only, all or nothing."""

from __future__ import annotations

import errno
import os
import stat
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from arbiterd.errors import ArbiterError


class NoRight(ArbiterError):
    """This user may not write the file."""


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit that was made. ``path``: the file itself, links followed."""

    path: Path
    before: bytes
    after: bytes


def mode_in(path: Path) -> str:
    """What the mode line of the file says, "" when that cannot be told."""
    try:
        found = tomllib.loads(path.read_bytes().decode()).get("mode")
    except (OSError, ValueError):
        return ""
    return found if isinstance(found, str) else ""


def set_mode(path: Path, mode: str) -> Edit | None:
    """Write ``mode`` into the file; comments, order and everything else stay as they are. None: it
    says so already.

    Raises:
        NoRight: this user may not write it, or could not keep its owner.
        ArbiterError: it has no mode line, or cannot be written.

    """
    real = Path(os.path.realpath(path))
    try:
        before = real.read_bytes()
    except PermissionError:
        msg = f"you may not read {path}"
        raise NoRight(msg) from None
    text = before.decode()
    old = tomllib.loads(text)
    if old.get("mode") == mode:
        return None
    if "mode" not in old:
        msg = f'{path} has no mode line; write as its first: mode = "{mode}"'
        raise ArbiterError(msg)
    try:
        document = tomlkit.parse(text)
        document["mode"] = mode
        after = tomlkit.dumps(document)
    except TOMLKitError as error:
        msg = f"{path} cannot be edited: {error}; edit its mode line yourself"
        raise ArbiterError(msg) from None
    if tomllib.loads(after) != {**old, "mode": mode}:
        msg = f"{path} cannot be edited without changing more; edit its mode line yourself"
        raise ArbiterError(msg)
    edit = Edit(real, before, after.encode())
    _write(real, edit.after)
    return edit


def put_back(edit: Edit) -> bool:
    """Undo; False when somebody else has changed the file since, which is then left alone."""
    if edit.path.read_bytes() != edit.after:
        return False
    _write(edit.path, edit.before)
    return True


def _write(path: Path, text: bytes) -> None:
    """A temporary file beside it, flushed, renamed over it; owner, permissions and attributes kept."""
    info = path.stat()
    folder = path.parent
    if os.geteuid() != 0 and (
        info.st_uid != os.geteuid() or not os.access(folder, os.W_OK | os.X_OK)
    ):
        msg = f"you may not write {path}"
        raise NoRight(msg)
    temporary = folder / f".{path.name}.{os.getpid()}.new"
    try:
        with open(temporary, "xb", opener=_private) as file:
            file.write(text)
            file.flush()
            if (info.st_uid, info.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), info.st_uid, info.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(info.st_mode))
            _copy_attributes(path, temporary)
            os.fsync(file.fileno())
        _replace(temporary, path, text)
        _flush(folder)
    except PermissionError as error:
        msg = f"you may not write {path}: {error.strerror}"
        raise NoRight(msg) from None
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}; nothing was changed"
        raise ArbiterError(msg) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _replace(temporary: Path, path: Path, text: bytes) -> None:
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # the file itself is a mount point (a container): there it can be written in place only
        with path.open("r+b") as file:
            file.write(text)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())


def _copy_attributes(path: Path, to: Path) -> None:
    """Access lists and labels, where the file system has them and lets us."""
    with suppress(OSError):
        for name in os.listxattr(path):
            with suppress(OSError):
                os.setxattr(to, name, os.getxattr(path, name))


def _flush(folder: Path) -> None:
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
