"""One file per process, written again for each input, for readers that take a path."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def folder(what: str) -> Path:
    """A folder of this process's own, in memory where there is such a place; gone at its end."""
    base = os.environ.get("FUZZ_HOME") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    made = Path(tempfile.mkdtemp(prefix=f"gpua-fuzz-{what}-", dir=base))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def file(what: str, name: str, data: bytes) -> Path:
    """The file with this content."""
    path = folder(what) / name
    path.write_bytes(data)
    return path
