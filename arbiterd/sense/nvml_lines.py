"""Orders of the NVML worker: whole lines of a pipe, waited for no longer than until the next look."""

from __future__ import annotations

import os
import select

_READ = 65536


class Lines:
    """Of a descriptor. ``ended``: its writer has closed it, and every line was handed out."""

    def __init__(self, fd: int) -> None:
        self.ended = False
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._left = b""

    def next(self, within_s: float) -> str:
        """The next line, "" when none has come within so many seconds or none will."""
        if b"\n" not in self._left and not self.ended and self._poll.poll(within_s * 1000):
            found = os.read(self._fd, _READ)
            self.ended = not found
            self._left += found
        line, end, rest = self._left.partition(b"\n")
        if not end:
            return ""
        self._left = rest
        return line.decode()
