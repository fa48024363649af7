"""Replacing a configuration file: whole or not at all, with its owner and mode, and a copy kept."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from arbiterd.errors import ArbiterError


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write beside it, fsync, rename. An existing file's owner and mode are kept; a link's target is
    written, the link stays.

    Raises:
        ArbiterError: it cannot be written; the old file is untouched.

    """
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{real.name}.new")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            with suppress(FileNotFoundError):
                old = real.stat()
                mode = old.st_mode & 0o7777
                with suppress(PermissionError):
                    os.fchown(out.fileno(), old.st_uid, old.st_gid)
            os.fchmod(out.fileno(), mode)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(real)
        _sync_folder(real.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        msg = f"cannot write {path}: {error.strerror}; be root, or name another file"
        raise ArbiterError(msg) from None


def _sync_folder(folder: Path) -> None:
    """The rename itself must outlive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
