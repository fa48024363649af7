"""Whether an operator's request can be taken, said at once and in one sentence.

It is judged by the settings in force and the last published decision. A tick later things may look
different: then ``take_requests`` does nothing, and the journal has what was asked.
"""

from __future__ import annotations

from arbiterd.core.backend import sleeping
from arbiterd.model.actions import OperatorRequest, Refusal, Verb
from arbiterd.model.backend import BackendView, Phase
from arbiterd.model.decision import Decision
from arbiterd.model.settings import Settings


def refusal(
    request: OperatorRequest, settings: Settings, decision: Decision | None
) -> Refusal | None:
    """Why the request is not taken, None when it is. ``decision`` None: before the first tick."""
    if request.verb is Verb.STOP_ALL:
        return None
    name = request.backend
    if request.verb is Verb.RESET_CAP:
        return _reset(name, settings, decision)
    if name not in settings.active.backends:
        names = ", ".join(settings.active.backends) or "none"
        text = f"mode {settings.mode} has no backend {name!r}; it has {names}"
        return Refusal("not_found", text)
    view = decision.backends.get(name) if decision else None
    if request.verb is Verb.SLEEP:
        return _sleep(name, settings, view)
    if request.verb is Verb.WAKE and (view is None or view.phase is not Phase.SLEEPING):
        phase = f"it is {view.phase.value}" if view else "it is not known yet"
        return Refusal("conflict", f"{name} is not asleep: {phase}")
    return None


def _sleep(name: str, settings: Settings, view: BackendView | None) -> Refusal | None:
    unable = sleeping.able(settings, name)
    if unable:
        return Refusal("conflict", unable)
    if view is None or not (view.phase is Phase.READY or view.drained):
        phase = f"it is {view.phase.value}" if view else "it is not known yet"
        if view is not None and view.reason:
            phase += f" ({view.reason})"
        return Refusal("conflict", f"only a ready backend can be put to sleep; {name}: {phase}")
    return None


def _reset(name: str, settings: Settings, decision: Decision | None) -> Refusal | None:
    """Caps are learned per mode: a backend that only another mode names may have one."""
    learned = decision.learned.values() if decision else ()
    if any(one.backend == name for one in learned):
        return None
    if not any(name in mode.backends for mode in settings.modes.values()):
        names = ", ".join(sorted({n for mode in settings.modes.values() for n in mode.backends}))
        return Refusal("not_found", f"there is no backend {name!r} in any mode; there is {names}")
    return Refusal("conflict", f"nothing is learned about {name}: its configured cap is in force")
