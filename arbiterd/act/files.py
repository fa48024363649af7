"""A configuration file as a command writes it: what goes wrong is one sentence."""

from __future__ import annotations

from pathlib import Path

from arbiterd.errors import ArbiterError
from arbiterd.store import atomic


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file of the operator's (store/atomic.py).

    Raises:
        ArbiterError: it cannot be written; the old file is untouched.

    """
    try:
        atomic.rewrite(path, data, mode=mode)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}; be root, or name another file"
        raise ArbiterError(msg) from None
