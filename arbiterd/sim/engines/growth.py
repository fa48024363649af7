"""Memory that grows at a set rate: leaks, pools, a stranger's notebook. In steps of 10 ms, so that a
ramp of 4 GiB/s climbs 40 MiB at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from arbiterd.quantities import GIB, KIB, MIB
from arbiterd.sim.engines.common import Card, Faults
from arbiterd.sim.gpu import DeviceLost, OutOfMemory

STEP_S = 0.01
IDLE_S = 0.04  # how soon a fault that is switched on takes effect
_AGAIN_S = 0.1  # after a refusal; an engine does not say so a hundred times a second
_CATCH_UP_S = 0.05  # a process that was frozen or starved goes on where it was, it does not jump


class Memory(Protocol):
    """Where memory is taken: a card as an engine sees it."""

    def alloc(self, size: int) -> int:
        """Take; returns a handle. Raises OutOfMemory."""

    def resize(self, handle: int, size: int) -> None:
        """Grow. Raises OutOfMemory."""


class Grower:
    """One allocation that grows while ``rate()`` (bytes a second) is positive, up to ``most()``.

    What was taken stays when the rate falls to 0: a leak does not heal. ``full``: it wants more than
    it may or can have. ``on_oom`` is called, with the error, when the device refuses a step.
    """

    def __init__(
        self,
        card: Memory,
        rate: Callable[[], float],
        *,
        most: Callable[[], float] = lambda: float("inf"),
        on_oom: Callable[[OutOfMemory], None] = lambda _: None,
    ) -> None:
        self._card, self._rate, self._most, self._on_oom = card, rate, most, on_oom
        self._handle = -1
        self.size = 0
        self.full = False
        self._refused = False

    def start(self) -> None:
        """In a thread of its own, for ever."""
        threading.Thread(target=self._run, name="grows", daemon=True).start()

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            if self._refused:
                time.sleep(_AGAIN_S)
            time.sleep(STEP_S if self._rate() > 0 else IDLE_S)
            now = time.monotonic()
            self.step(min(now - last, _CATCH_UP_S))
            last = now

    def step(self, elapsed_s: float) -> None:
        """Grow by what the rate gives for so long."""
        wanted = self.size + int(max(0.0, self._rate()) * elapsed_s)
        size = int(min(wanted, self._most()))
        self.full, self._refused = wanted > size, False
        if size <= self.size:
            return
        try:
            if self._handle < 0:
                self._handle = self._card.alloc(size)
            else:
                self._card.resize(self._handle, size)
            self.size = size
        except OutOfMemory as error:
            self.full = self._refused = True
            step = OutOfMemory(size - self.size, error.free_bytes, error.total_bytes)
            self._on_oom(step)
        except DeviceLost:
            self.full = self._refused = True


def leak(
    card: Card, faults: Faults, on_oom: Callable[[OutOfMemory], None] = lambda _: None
) -> Grower:
    """Grow by leak_mib_per_s (or leak_bytes_per_s), up to leak_max_mib."""

    def rate() -> float:
        in_mib = float(faults.get("leak_mib_per_s", 0))
        return in_mib * MIB + float(faults.get("leak_bytes_per_s", 0))

    def most() -> float:
        return float(faults.get("leak_max_mib", "inf")) * MIB

    made = Grower(card, rate, most=most, on_oom=on_oom)
    made.start()
    return made


def torch_words(error: OutOfMemory) -> str:
    """PyTorch's sentence, up to its advice (c10/cuda/CUDACachingAllocator.cpp)."""
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {_size(error.asked_bytes)}. "
        f"GPU 0 has a total capacity of {_size(error.total_bytes)} of which "
        f"{_size(error.free_bytes)} is free."
    )


def _size(size: int) -> str:
    """As format_size there."""
    if size <= KIB:
        return f"{size} bytes"
    if size <= MIB:
        return f"{size / KIB:.2f} KiB"
    return f"{size / MIB:.2f} MiB" if size <= GIB else f"{size / GIB:.2f} GiB"
