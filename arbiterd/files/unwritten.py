"""Files that could not be written (a full, read-only or broken disk): told once, written when they can be.

The daemon goes on without them: what they are for is lost only if it ends before they are written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Failed:
    why: str
    again: Callable[[], None]


_lock = threading.Lock()
_failed: dict[str, _Failed] = {}
_trying = threading.Lock()


def failed(path: Path, error: OSError, again: Callable[[], None]) -> None:
    """``path`` could not be written; ``again`` tries the same and raises OSError."""
    with _lock:
        _failed[str(path)] = _Failed(error.strerror or str(error), again)


def written(path: Path) -> None:
    """``path`` is written, or is wanted no more."""
    if _failed:
        with _lock:
            _failed.pop(str(path), None)


def told() -> tuple[str, ...]:
    """A sentence for each file that is behind, () while none is."""
    with _lock:
        found = sorted(_failed.items())
    return tuple(f"cannot write {path}: {one.why}" for path, one in found)


def catch_up() -> None:
    """Try all of them again; one caller at a time, others return at once."""
    if not _trying.acquire(blocking=False):
        return
    try:
        with _lock:
            found = dict(_failed)
        for path, one in found.items():
            with _lock:
                newest = _failed.get(path) is one
            if newest:
                _retry(one)
    finally:
        _trying.release()


def _retry(one: _Failed) -> None:
    try:
        one.again()
    except OSError:
        return  # noted again by the writer itself
