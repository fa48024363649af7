"""Memory for bodies in the load gate: bytes that may be held in all; the rest waits in line."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from arbiterd.loadgate.library import Refused

TOTAL_BYTES: Final = 64 * 1024 * 1024  # decoded bodies that are held at a time
FREE_BYTES: Final = 64 * 1024  # a body up to this size waits for nobody
WAITING_MOST: Final = 64  # bodies in line: each may hold what its connection has buffered
READING_MOST: Final = (
    512  # bodies of which more is to come; each may hold FREE_BYTES and a read buffer
)
WAIT_S: Final = 10.0
_RETRY_AFTER_S = 5


class Lease:
    """So many bytes, until released."""

    def __init__(self, room: Room, size: int) -> None:
        self._room, self._size = room, size

    def shrink(self, size: int) -> None:
        """Give back what is over ``size`` bytes."""
        if size < self._size:
            given, self._size = self._size - size, size
            self._room.give(given)

    def release(self) -> None:
        """Give back all of it; idempotent."""
        self.shrink(0)


class Room:
    """Of one gate; first come, first served."""

    def __init__(self, total: int = TOTAL_BYTES) -> None:
        self.total = total
        self.used = 0
        self.reading = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Bodies in line."""
        return len(self._line)

    async def take(self, size: int, wait_s: float = WAIT_S) -> Lease:
        """Room for ``size`` bytes; more than the whole is cut to it.

        Raises:
            Refused: 503, not within ``wait_s``, or too many wait already.

        """
        size = min(size, self.total)
        if not self._line and self.used + size <= self.total:
            self.used += size
            return Lease(self, size)
        if len(self._line) >= WAITING_MOST:
            raise self._full()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await asyncio.wait_for(asyncio.shield(turn), wait_s)
        except TimeoutError:
            if not turn.done():
                raise self._full() from None
        except asyncio.CancelledError:
            if turn.done():
                self.give(size)
            raise
        finally:
            if not turn.done():
                turn.cancel()
                self._line.remove((size, turn))
                self._admit()
        return Lease(self, size)

    @contextmanager
    def reads(self) -> Iterator[None]:
        """While the next bytes of a body are waited for.

        Raises:
            Refused: 503, too many bodies are.

        """
        if self.reading >= READING_MOST:
            msg = f"{self.reading} bodies are being received already"
            raise Refused(msg, retry_after_s=_RETRY_AFTER_S)
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    def give(self, size: int) -> None:
        """Back into the whole; whoever is next gets it."""
        self.used -= size
        self._admit()

    def _admit(self) -> None:
        while self._line and self.used + self._line[0][0] <= self.total:
            size, turn = self._line.popleft()
            self.used += size
            turn.set_result(None)

    def _full(self) -> Refused:
        text = (
            f"large bodies are held already ({self.used >> 20} of {self.total >> 20} MiB): "
            "try again, or send a smaller one"
        )
        return Refused(text, retry_after_s=_RETRY_AFTER_S)
