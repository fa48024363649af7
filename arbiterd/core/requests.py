"""What operators ask for."""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import faults, learn, sleeping
from arbiterd.core.desk import Desk
from arbiterd.core.failing import TROUBLE
from arbiterd.model.actions import OperatorRequest, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity


def take_requests(desk: Desk) -> None:
    """Note every request in the states of the backends."""
    for request in desk.seen.requests:
        if request.verb is Verb.STOP_ALL:
            text = f"stopping every backend, asked by {request.by}"
            desk.tell(EventName.STOP, Severity.NOTICE, text)
            for name, backend in list(desk.backends.items()):
                # each stays stopped until it is resumed
                if desk.wanted(name) is not None:
                    desk.put(replace(backend, parked=True))
        elif request.verb is Verb.RESET_CAP:  # also of one that only another mode names
            learn.reset(desk, request.backend, request.by)
        elif request.backend in desk.backends:
            _one(desk, request)


def _one(desk: Desk, request: OperatorRequest) -> None:
    backend = desk.backends[request.backend]
    match request.verb:
        case Verb.DRAIN:
            desk.put(replace(backend, held=True))
            name, what = EventName.SHED, "drained"
        case Verb.RESUME:
            name, what = EventName.UNSHED, "resumed"
            faults.forgive(desk, backend.name)
            phase = Phase.STOPPED if backend.phase is Phase.FAILED else backend.phase
            changed = replace(
                backend, held=False, parked=False, failures=(), attempt=0, not_before=0.0,
                sleep=replace(backend.sleep, wake=backend.phase is Phase.SLEEPING),
            )  # fmt: skip
            desk.put(changed)
            if phase is not backend.phase:
                desk.enter(changed, phase, "resumed")
        case Verb.RESTART:
            name, what = EventName.RESTART, "restart asked"
            resting = backend.phase in (Phase.BACKOFF, Phase.FAILED, Phase.STOPPED)
            changed = replace(
                backend,
                restart_asked=not resting,
                parked=False,
                failures=(),
                attempt=0,
                not_before=0.0,
            )
            desk.put(changed)
        case Verb.SLEEP:
            if sleeping.able(desk.settings, backend.name):
                return  # told to the asker already (core/asking)
            name, what = EventName.SLEEP, "sleep asked"
            sleeping.ask(desk, backend, request.by, drain_of(desk, backend.name))
        case Verb.WAKE:
            name, what = EventName.WAKE, "wake asked"
            desk.put(replace(backend, sleep=replace(backend.sleep, wake=True)))
        case Verb.RESET_CAP | Verb.STOP_ALL:
            return
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    desk.tell(
        name,
        Severity.NOTICE,
        f"{backend.name}: {what} by {request.by}",
        backend.name,
        incident=trouble.id if trouble else "",
        reason=f"operator: {request.by}",
    )


def drain_of(desk: Desk, name: str) -> float:
    """Seconds its requests may still run."""
    wanted = desk.wanted(name)
    return wanted.drain_timeout_s if wanted else 0.0
