"""At most one memory event per device: which start, wake or load of a first model begins in this tick.

The only place that serialises. It looks at every backend after its step, so that a start never begins in
the tick in which another engine dies; each grant is seen by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arbiterd.core.backend import lifecycle, sleeping, warm
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Ask, Facts, Step
from arbiterd.core.memory.gate import moves
from arbiterd.core.notes import Notes


def grant(
    facts: Facts, steps: Mapping[str, Step], before: Mapping[str, BackendState]
) -> tuple[Facts, Notes]:
    """In the order of the steps: what begins now, why the rest waits. ``before``: as they found backends.

    A memory event that has ended in this tick is over at once for those that come after its backend, and
    from the next tick on for those that come before it (``Facts.moved``).
    """
    moved = {name: before[name] for name in steps if moves(before[name])}
    notes: Notes = ()
    for name, asked in steps.items():
        moved.pop(name, None)
        ask = asked.ask
        if ask is None:
            continue
        here, backend = replace(facts, moved=dict(moved)), facts.backends[name]
        if ask is Ask.START:
            here, said = lifecycle.start(here, backend)
        else:
            step = sleeping.wake(here, backend) if ask is Ask.WAKE else warm.load(here, backend)
            here, said = here.put(step.backend), step.notes
        facts, notes = here, (*notes, *said)
    return replace(facts, moved={}) if facts.moved else facts, notes
