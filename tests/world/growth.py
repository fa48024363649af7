"""What makes a holder grow: leaks, ramps, load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arbiterd.quantities import MIB
from tests.world.hardware import Proc

CHUNK = 2 * MIB  # the granularity of CUDA's virtual memory


@dataclass(slots=True, eq=False)
class Growth:
    """``rate`` bytes a second into ``proc`` until ``left`` are taken. ``speed`` scales it (0: it stands
    still: frozen, asleep, no requests). ``full``: called when an allocation does not fit.
    ``chunk``: allocations are multiples of it. ``planned`` False: a leak.
    """

    proc: Proc
    rate: float
    left: float
    full: Callable[[], None]
    speed: Callable[[], float] | None = None
    chunk: int = CHUNK
    owed: float = 0.0
    taken: int = 0
    over: bool = False
    done: Callable[[], None] | None = None
    planned: bool = True

    def step(self, dt: float) -> None:
        """Grow for ``dt`` seconds."""
        self.over = self.over or self.proc.gone
        speed = 1.0 if self.speed is None else self.speed()
        if speed <= 0.0 or self.over:
            return
        self.owed = min(self.owed + self.rate * speed * dt, self.left)
        size = int(self.owed) // self.chunk * self.chunk
        if self.owed >= self.left and size < int(self.owed):
            size = int(self.owed)
        if size <= 0:
            return
        if not self.proc.take(size):
            self.over = True
            self.full()
            return
        self.owed -= size
        self.left -= size
        self.taken += size
        if self.left < 1:
            self.over = True
            if self.done is not None:
                self.done()
