"""Counters since the daemon's start, folded from the events of every finished tick.

A snapshot shows what is; a counter must not lose what began and ended between two scrapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from arbiterd.core.limits import SEEN_BACK
from arbiterd.core.memory.reclaim import DISRUPTIVE, RUNNER
from arbiterd.model.events import Event, EventName

WORKED, PARTLY, WITHOUT_EFFECT = "worked", "partly", "without_effect"
OUTCOMES = (WORKED, PARTLY, WITHOUT_EFFECT)
_DISRUPTIVE = tuple(rung.value for rung in DISRUPTIVE)
DISRUPTIVE_KINDS = (*_DISRUPTIVE, RUNNER)


@dataclass(slots=True)
class Counts:
    """``events``: (event, backend). ``reclaims``: (gpu, rung, outcome), ``reclaimed``: bytes seen back by
    (gpu, rung). ``disruptive``: (gpu, what). ``ooms``: (backend, class). ``freezes``, ``throttles``: by
    backend.
    """

    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    reclaims: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    reclaimed: Counter[tuple[str, str]] = field(default_factory=Counter)
    disruptive: Counter[tuple[str, str]] = field(default_factory=Counter)
    ooms: Counter[tuple[str, str]] = field(default_factory=Counter)
    freezes: Counter[str] = field(default_factory=Counter)
    throttles: Counter[str] = field(default_factory=Counter)

    def add(self, events: Iterable[Event]) -> None:
        """Count the events of one tick."""
        for event in events:
            self.events[event.name.value, event.backend] += 1
            match event.name:
                case EventName.RECLAIM:
                    self._reclaim(event)
                case EventName.KILL if event.kind == RUNNER:
                    self.disruptive[event.gpu, RUNNER] += 1
                case EventName.OOM if event.kind:
                    self.ooms[event.backend, event.kind] += 1
                case EventName.FREEZE:
                    self.freezes[event.backend] += 1
                case EventName.THROTTLE:
                    self.throttles[event.backend] += 1

    def _reclaim(self, event: Event) -> None:
        """Its begin names what is expected, its end also what came back."""
        if event.bytes_freed is None:
            if event.kind in _DISRUPTIVE:
                self.disruptive[event.gpu, event.kind] += 1
            return
        self.reclaims[event.gpu, event.kind, outcome_of(event)] += 1
        self.reclaimed[event.gpu, event.kind] += max(0, event.bytes_freed)

    def copy(self) -> Counts:
        """As of now."""
        return Counts(
            Counter(self.events),
            Counter(self.reclaims),
            Counter(self.reclaimed),
            Counter(self.disruptive),
            Counter(self.ooms),
            Counter(self.freezes),
            Counter(self.throttles),
        )


def outcome_of(event: Event) -> str:
    """Judged by the bytes, as core does: an engine's word is no proof."""
    freed, expected = event.bytes_freed or 0, event.bytes_expected or 0
    if freed >= SEEN_BACK * expected:
        return WORKED
    return PARTLY if freed > 0 else WITHOUT_EFFECT
