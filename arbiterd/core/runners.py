"""Runners of an engine that have died while the engine goes on: told with their cause, once each."""

from __future__ import annotations

from arbiterd.core.desk import Desk
from arbiterd.engines.base import CauseClass
from arbiterd.model.events import EventName, Severity

_WHY = {
    CauseClass.OOM_RUNTIME.value: "out of GPU memory",
    CauseClass.CONTEXT_POISONED.value: "its CUDA context broke",
    "killed": "killed from outside; the kernel's OOM killer does that too",
}


def tell_deaths(desk: Desk) -> None:
    """The engine starts a new runner at the next request; nothing is done here."""
    for name, death in desk.seen.deaths:
        why = _WHY.get(death.cause, "")
        text = f"{name}: a runner died ({death.how})" + (f": {why}" if why else "")
        desk.tell(
            EventName.RUNNER_DIED, Severity.WARNING, text, name, reason=death.line, kind=death.cause
        )
