"""Memory that threads have freed does not stay in the daemon."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from arbiterd import heap

_COUNT = """
import ctypes, sys, threading
from arbiterd import heap
if sys.argv[1] == "bound":
    assert heap.bound()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(6)
def work():
    for _ in range(3):
        together.wait()
        assert libc.malloc(4096)
threads = [threading.Thread(target=work) for _ in range(6)]
for one in threads: one.start()
for one in threads: one.join()
libc.fopen.restype = ctypes.c_void_p
libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fflush.argtypes = [ctypes.c_void_p]
out = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, out)
libc.fflush(out)
"""


def _arenas(how: str) -> int:
    argv = [sys.executable, "-c", _COUNT, how]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.count("<heap nr=")


def test_threads_share_two_arenas() -> None:
    """Six threads that allocate at once: as many arenas by default, two with the bound."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("this C library has no mallopt: it is not glibc")
    assert _arenas("free") > heap.ARENAS
    assert _arenas("bound") == heap.ARENAS
