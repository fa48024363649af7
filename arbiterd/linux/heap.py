"""How glibc keeps freed memory, for a process of many short-lived threads.

By default each thread allocates from one of up to 8 arenas per core, and each arena keeps what its busiest
moment took; a large block that is freed raises the size from which blocks go back to the kernel (to at
most 32 MiB); and what is free below the top of an arena stays for good. A daemon then grows for hours
without holding one object more (measured: docs/reliability.md).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

from arbiterd.aside import aside

ARENAS = 2
TRIM_EVERY_S = 60.0
BACK_BYTES = 128 * 1024  # glibc's own first value; set by hand it stays
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def bound() -> bool:
    """Bound the arenas, give large blocks back when freed; to be called before the first thread. False: the
    C library is not glibc, and nothing was changed.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        given = (
            (_M_ARENA_MAX, ARENAS),
            (_M_MMAP_THRESHOLD, BACK_BYTES),
            (_M_TRIM_THRESHOLD, BACK_BYTES),
        )
        return all(mallopt(name, value) == 1 for name, value in given)
    return False


def trim() -> None:
    """Give back what is free below the tops of the arenas: within a millisecond (0.2 ms measured)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Trimmer:
    """Trims each TRIM_EVERY_S seconds, beside the loop."""

    def __init__(self) -> None:
        self._next = 0.0

    def look(self, now: float) -> None:
        """A tick (monotonic)."""
        if now >= self._next:
            self._next = now + TRIM_EVERY_S
            aside(trim, name="heap")
