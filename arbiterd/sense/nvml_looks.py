"""The NVML worker's own looks at free memory, between orders: whose, when, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pynvml as nv

from arbiterd.sense import looks


class Looker:
    """Cards of the newest sample. ``where`` takes the index of the card that is called, ``limits`` their
    critical lines by uuid.
    """

    def __init__(self, where: Callable[[int], None]) -> None:
        self.limits: Mapping[str, int] = {}
        self._where = where
        self._cards: dict[str, looks.Card] = {}
        self._looked: list[tuple[int, str, Any]] = []
        self._cost_s = self._mark = 0.0
        self._next_at = self._told_at = time.monotonic()

    def begin(self, now: float) -> None:
        """A sample begins: its cards are told next."""
        self._looked, self._told_at = [], now

    def told(self, index: int, handle: Any, uuid: str, free: int, at: float) -> None:
        """A card is in the sample; it is looked at until the next one."""
        card = self._cards.get(uuid)
        if card is None:
            self._cards[uuid] = looks.Card.of(free, at)
        else:
            card.look(free, at, 0)
            card.tell(free, at)
        self._looked.append((index, uuid, handle))

    def rest_s(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next_at - time.monotonic())

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing was told for so long."""
        return time.monotonic() - self._told_at >= seconds

    def look(self) -> bool:
        """Look at each card's free memory; whether a sample is to be told now. A card that fails is left
        to the next order.
        """
        news = failed = False
        for index, uuid, handle in self._looked:
            self._where(index)
            try:
                free = int(nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2).free)
            except nv.NVMLError:
                self._cards.pop(uuid, None)
                failed = True
                continue
            now = time.monotonic()
            news |= self._cards[uuid].look(free, now, self.limits.get(uuid, 0))
        if failed:
            self._looked = [one for one in self._looked if one[1] in self._cards]
        self._cost_s += (time.thread_time() - self._mark - self._cost_s) / 8  # the wait's as well
        self.plan()
        return news

    def plan(self) -> None:
        """When the next look comes: while nothing moves it is put off until looks are cheap enough."""
        self._mark = time.thread_time()
        now, near = time.monotonic(), looks.LONGEST_S
        for _, uuid, _ in self._looked:
            card = self._cards[uuid]
            near = min(near, looks.next_look_s(card.free, self.limits.get(uuid, 0), card.fastest))
        moving = any(now - self._cards[u].news_at < looks.AGAIN_S for _, u, _ in self._looked)
        self._next_at = now + (near if moving else max(near, looks.affordable_s(self._cost_s)))
