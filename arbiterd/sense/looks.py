"""When free memory is looked at next, and which looks are told at once. Pure; seconds and bytes.

A look is one call for each card, without lists and without JSON. The nearer a card is to its critical
line, by the fastest that it was seen to fill, the sooner the next one comes. Imported by the NVML
worker: the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST_S, LONGEST_S = 0.025, 0.25
# One cudaMalloc takes what is left within milliseconds: until more is seen, a card may fill so fast.
FILL_BYTES_S = float(128 << 30)
FORGET_S = 600.0  # the fastest fill seen counts half after so long
MOVED_BYTES = 64 << 20  # free memory moved so much since it was told: tell it
QUIET_S = 0.25  # who allocates and frees in each step is told so often
AGAIN_S = 1.0  # so long after a low, or a crossing of the line, the same one is news again
COST_SHARE = 0.003  # of a core that looks may take, where cards are not near their lines


def next_look_s(free: int, critical: int, fastest: float) -> float:
    """Seconds until the next look: half the time in which the card could come to its line."""
    left_s = (free - critical) / fastest / 2
    return min(LONGEST_S, max(SHORTEST_S, left_s))


def affordable_s(cost_s: float) -> float:
    """The least seconds between two looks that cost so many seconds of CPU each."""
    return min(LONGEST_S, cost_s / COST_SHARE)


@dataclass(slots=True)
class Card:
    """What was looked at and told of one card. ``fastest``: bytes a second that it was seen to fill;
    ``news_at``: when a look was last to be told at once.
    """

    told: int
    told_at: float
    free: int
    at: float
    fastest: float = FILL_BYTES_S
    lowest: int = 0
    low_at: float = 0.0
    news_at: float = -AGAIN_S

    @staticmethod
    def of(free: int, at: float) -> Card:
        """A card that was just told of."""
        return Card(free, at, free, at, lowest=free, low_at=at)

    def look(self, free: int, at: float, critical: int) -> bool:
        """One more look; whether it is to be told at once: a new low, a crossing of the line, or, at most
        each QUIET_S, a move.
        """
        apart = max(1e-3, at - self.at)
        faded = self.fastest * 0.5 ** (apart / FORGET_S)
        self.fastest = max(FILL_BYTES_S, faded, (self.free - free) / apart)
        self.free, self.at = free, at
        if at - self.low_at >= AGAIN_S:
            self.lowest = self.told
        low = free < self.lowest - MOVED_BYTES or free < critical <= self.lowest
        moved = abs(free - self.told) > MOVED_BYTES and at - self.told_at >= QUIET_S
        if low or moved:
            self.news_at = at
        return low or moved

    def tell(self, free: int, at: float) -> None:
        """It is told now."""
        self.told, self.told_at, self.free, self.at = free, at, free, at
        if free <= self.lowest or at - self.low_at >= AGAIN_S:
            self.lowest, self.low_at = free, at
