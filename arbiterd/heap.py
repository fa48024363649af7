"""How glibc keeps freed memory, for a process of many short-lived threads.

By default each thread allocates from one of up to 8 arenas per core, and each arena keeps what its busiest
moment took; and a large block that is freed raises the size from which blocks go back to the kernel (to at
most 32 MiB). A daemon then grows for hours without holding one object more (measured: docs/reliability.md).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

ARENAS = 2
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
