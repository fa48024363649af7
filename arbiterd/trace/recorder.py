"""Where the loop leaves its ticks for whoever records them. Nobody does: it costs one comparison."""

from __future__ import annotations

import asyncio
from collections import deque

from arbiterd.trace.lines import Tick

KEPT = 240  # ticks a slow reader may lag behind: a minute at the default poll


class Listener:
    """One recording. Made and read in the web thread's event loop, filled by the loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._ticks: deque[Tick] = deque()
        self.late = False

    def put(self, tick: Tick) -> None:
        """One more tick. A reader that lags too far behind gets no further one, and is told."""
        if len(self._ticks) >= KEPT:
            self.late = True
        if not self.late:
            self._ticks.append(tick)
        self._loop.call_soon_threadsafe(self._ready.set)

    async def take(self, timeout_s: float) -> tuple[Tick, ...]:
        """Ticks since the last call, () after ``timeout_s`` without one."""
        if not self._ticks and not self.late:
            self._ready.clear()
            try:
                await asyncio.wait_for(self._ready.wait(), timeout_s)
            except TimeoutError:
                return ()
        out = []
        while self._ticks:
            out.append(self._ticks.popleft())
        return tuple(out)


class Tap:
    """``listeners`` is replaced whole, so that the loop reads it without a lock."""

    def __init__(self) -> None:
        self.listeners: tuple[Listener, ...] = ()

    def open(self) -> Listener:
        """A new recording."""
        one = Listener()
        self.listeners = (*self.listeners, one)
        return one

    def close(self, listener: Listener) -> None:
        """It ends."""
        self.listeners = tuple(one for one in self.listeners if one is not listener)

    def put(self, tick: Tick) -> None:
        """From the loop, after each tick."""
        for one in self.listeners:
            one.put(tick)
