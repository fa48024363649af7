"""Reading files that somebody else may replace by anything: bounded in bytes and in time.

A pipe that nobody writes to, a disk that hangs and /dev/zero all look like a file by their name. Each
call works in a thread of its own and gives up on it; while one is stuck at a path, the next call at that
path fails at once, so that stuck threads do not pile up.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import Generic, TypeVar

from arbiterd.aside import thread as named_thread

WAIT_S = 2.0
FILE_BYTES = 1024**2  # a file that the configuration names
CONFIG_BYTES = 4 * 1024**2  # a configuration of 1,000 backends is some 200 KB
_PART = 256 * 1024
T = TypeVar("T")

_lock = threading.Lock()
_stuck: dict[str, threading.Thread] = {}


class _Job(Generic[T]):
    """One call, its result or its error."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.done = threading.Event()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self.error = error
        finally:
            self.done.set()


def aside(what: str, work: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """The result of ``work``, run in a thread. ``what``: the path or device that it may hang at.

    Raises:
        TimeoutError: no result within ``timeout_s``, or an earlier call hangs at ``what``.
        OSError: what ``work`` raises; EAGAIN where the system refuses a thread (pids used up).

    """
    with _lock:
        before = _stuck.get(what)
        if before is not None and before.is_alive():
            raise _late(what, timeout_s)
        job = _Job(work)
        thread = named_thread(job.run, name="bounded")
        _stuck.pop(what, None)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error), what) from None
    if not job.done.wait(timeout_s):
        with _lock:
            _stuck[what] = thread
        raise _late(what, timeout_s)
    if job.error is not None:
        raise job.error
    return job.result  # type: ignore[return-value]


def read(path: str | Path, most: int, timeout_s: float = WAIT_S) -> bytes:
    """The whole file.

    Raises:
        TimeoutError: it is not read within ``timeout_s``.
        OSError: it is larger than ``most`` bytes (EFBIG), or what open and read say.

    """
    return aside(str(path), lambda: _read(str(path), most, timeout_s), timeout_s * 2)


def text(path: str | Path, most: int, timeout_s: float = WAIT_S) -> str:
    """The same as text, UTF-8.

    Raises:
        OSError: as ``read``.
        UnicodeDecodeError: it is not UTF-8.

    """
    return read(path, most, timeout_s).decode()


def regular(path: str | Path, most: int, timeout_s: float = WAIT_S) -> bytes:
    """The same of a regular file alone: what a configuration names is neither a pipe nor a device.

    Raises:
        OSError: as ``read``; EINVAL for anything else than a regular file.

    """
    if not S_ISREG(stat(path, timeout_s).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return read(path, most, timeout_s)


def stat(path: str | Path, timeout_s: float = WAIT_S) -> os.stat_result:
    """os.stat.

    Raises:
        OSError: as os.stat; TimeoutError after ``timeout_s``.

    """
    return aside(str(path), lambda: os.stat(path), timeout_s)


def _read(path: str, most: int, timeout_s: float) -> bytes:
    """O_NONBLOCK: opening a pipe that nobody writes to would hang for ever, and leave a thread behind."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        out, end = bytearray(), time.monotonic() + timeout_s
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        while True:
            if not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
                raise _late(path, timeout_s)
            try:
                part = os.read(fd, _PART)
            except BlockingIOError:
                continue
            if not part:
                return bytes(out)
            out += part
            if len(out) > most:
                raise OSError(errno.EFBIG, f"it is larger than {most} bytes", path)
    finally:
        os.close(fd)


def _late(what: str, timeout_s: float) -> TimeoutError:
    why = f"no answer within {timeout_s:g} s (a pipe that nobody writes to, or a disk that hangs)"
    return TimeoutError(errno.ETIMEDOUT, why, what)
