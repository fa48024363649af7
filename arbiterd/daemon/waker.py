"""One way to wake the loop: from a signal handler, a launcher's thread, a finished action."""

from __future__ import annotations

import os
import select
from contextlib import suppress


class Waker:
    """An eventfd. ``wake`` may be called from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._closed = False

    def wake(self) -> None:
        """End the present or next ``wait`` at once."""
        if not self._closed:
            with suppress(OSError):
                os.eventfd_write(self._fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Wait to be woken; returns whether it was."""
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            return False
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        self._closed = True
        os.close(self._fd)
