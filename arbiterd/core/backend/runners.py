"""Runners of an engine that have died while the engine goes on: told with their cause, once each."""

from __future__ import annotations

from arbiterd.core.facts import Facts
from arbiterd.core.notes import Note, Notes
from arbiterd.engines.base import CauseClass
from arbiterd.model.events import EventName, Severity

_WHY = {
    CauseClass.OOM_RUNTIME.value: "out of GPU memory",
    CauseClass.CONTEXT_POISONED.value: "its CUDA context broke",
    "killed": "killed from outside; the kernel's OOM killer does that too",
}


def deaths(facts: Facts) -> Notes:
    """The engine starts a new runner at the next request; nothing is done here."""
    notes: list[Note] = []
    for name, death in facts.seen.deaths:
        why = _WHY.get(death.cause, "")
        text = f"{name}: a runner died ({death.how})" + (f": {why}" if why else "")
        event, reason = EventName.RUNNER_DIED, death.line
        notes.append(
            facts.say(event, Severity.WARNING, text, name, reason=reason, kind=death.cause)
        )
    return tuple(notes)
