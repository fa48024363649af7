"""A queue in front of a writer that may block: a pipe that nobody reads, a journal that hangs.

Who logs never waits. What does not fit is counted, and the count is written as soon as writing works.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from arbiterd import aside

MOST_LINES, MOST_BYTES = 4096, 8 * 1024**2
CLOSE_S = 2.0  # how long an end waits for the last lines
T = TypeVar("T")


class Aside(Generic[T]):
    """``write`` runs in a thread, one entry after the other, and may raise OSError or ValueError: then
    this entry is lost. ``lost``: makes the entry that says how many were.
    """

    def __init__(self, write: Callable[[T], None], lost: Callable[[int], T]) -> None:
        self._write = write
        self._tell = lost
        self._entries: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._lost = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, entry: T, size: int) -> None:
        """Write this as soon as possible. ``size``: bytes, roughly."""
        with self._changed:
            if len(self._entries) >= MOST_LINES or self._bytes + size > MOST_BYTES:
                self._lost += 1
                return
            self._entries.append((entry, size))
            self._bytes += size
            if self._thread is None:
                thread = aside.thread(self._run, name="log")
                with suppress(RuntimeError):  # pids are used up: begun with a later entry
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Write what is left, for so long; whether all of it was written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        with self._changed:
            return not self._entries and not (thread is not None and thread.is_alive())

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until everything is written, for so long at most."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._entries and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._entries

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._entries and not self._closing:
                    self._changed.wait()
                if not self._entries:
                    return
                entry, size = self._entries[0]
            written = self._written(entry)
            with self._changed:
                self._entries.popleft()
                self._bytes -= size
                self._lost += not written
                lost = self._lost if written else 0
                self._changed.notify_all()
            if lost and self._written(self._tell(lost)):
                with self._changed:
                    self._lost -= lost

    def _written(self, entry: T) -> bool:
        try:
            self._write(entry)
        except (OSError, ValueError):
            return False
        return True
