"""Memory that threads have freed does not stay in the daemon."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from arbiterd.linux import heap

_COUNT = """
import ctypes, sys, threading
from arbiterd.linux import heap
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


_HOLES = """
import ctypes
from arbiterd.linux import heap
heap.bound()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4
blocks = []
for _ in range(5000):
    blocks.append(libc.malloc(8192))
    ctypes.memset(blocks[-1], 1, 8192)
for one in blocks[:-1]:
    libc.free(one)
full = resident()
heap.trim()
print(full - resident())
"""


def test_what_is_free_below_the_top_goes_back() -> None:
    """Forty MiB below one block that is still held: the process is at least half of them smaller."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("this C library has no malloc_trim: it is not glibc")
    argv = [sys.executable, "-c", _HOLES]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 20 * 1024


def test_it_trims_each_minute_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first tick, then once a minute, however many ticks there are."""
    begun: list[object] = []
    monkeypatch.setattr(heap, "aside", lambda run, name: begun.append(run))
    trimmer = heap.Trimmer()
    for now in (100.0, 100.25, 159.0, 160.0, 161.0, 220.0):
        trimmer.look(now)
    assert begun == [heap.trim] * 3
