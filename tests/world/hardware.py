"""Cards and the processes that hold their bytes. Memory is exact: what does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from arbiterd.model.devices import Device, ProcessRef


@dataclass(slots=True, eq=False)
class Card:
    """A GPU or a MIG slice. ``used`` counts every byte, those of the dead included until they are
    back (``lag_s`` after their process); ``lost``: NVML lists it no more; ``dirty``: moved, no look yet.
    """

    device: Device
    lag_s: float = 0.3
    used: int = 0
    ghosts: int = 0
    procs: dict[int, Proc] = field(default_factory=dict)
    lost: bool = False
    dirty: bool = True

    @property
    def free(self) -> int:
        """Bytes that an allocation can have now."""
        return self.device.capacity_bytes - self.used


@dataclass(slots=True, eq=False)
class Proc:
    """A process with ``held`` bytes on each of its cards. ``holder`` "" is a stranger."""

    pid: int
    start_time: int
    cards: tuple[Card, ...]
    holder: str = ""
    unit: str = ""
    user: str = ""
    command: str = ""
    held: int = 0
    ref: ProcessRef | None = None
    gone: bool = False

    def take(self, size: int) -> bool:
        """Allocate on every card of it, or nowhere (False)."""
        if any(card.free < size for card in self.cards):
            return False
        self.held += size
        for card in self.cards:
            card.used += size
            card.procs[self.pid] = self
            card.dirty = True
        return True

    def give(self, size: int) -> None:
        """Free while it lives: the bytes are back at once."""
        size = min(size, self.held)
        self.held -= size
        for card in self.cards:
            card.used -= size
            card.dirty = True
            if not self.held:
                card.procs.pop(self.pid, None)

    def end(self) -> list[tuple[Card, int]]:
        """It is gone from the lists; its bytes are ghosts until they are released."""
        out = []
        self.gone = True
        for card in self.cards:
            card.procs.pop(self.pid, None)
            card.dirty = True
            card.ghosts += self.held
            if self.held:
                out.append((card, self.held))
        self.held = 0
        return out


def release(card: Card, size: int) -> None:
    """Ghost bytes are back."""
    card.ghosts -= size
    card.used -= size
    card.dirty = True
