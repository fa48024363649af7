"""What operators ask for."""

from __future__ import annotations

from arbiterd.core.backend import sleeping
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.memory import faults, learn
from arbiterd.core.notes import Note, Notes, trouble
from arbiterd.model.actions import OperatorRequest, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity


def take_requests(facts: Facts) -> tuple[Facts, Notes]:
    """Note every request in the states of the backends."""
    notes: Notes = ()
    for request in facts.seen.requests:
        said: Note | None = None
        if request.verb is Verb.STOP_ALL:
            text = f"stopping every backend, asked by {request.by}"
            said = facts.say(EventName.STOP, Severity.NOTICE, text)
            for name in facts.settings.active.backends:
                if name in facts.backends:  # each stays stopped until it is resumed
                    backend = facts.backends[name]
                    facts = facts.put(backend.having(wish=backend.wish.park()))
        elif request.verb is Verb.RESET_CAP:  # also of one that only another mode names
            facts, said = learn.reset(facts, request.backend, request.by)
        elif request.backend in facts.backends:
            facts, said = _one(facts, request)
        notes = (*notes, said) if said else notes
    return facts, notes


def _one(facts: Facts, request: OperatorRequest) -> tuple[Facts, Note | None]:
    backend = facts.backends[request.backend]
    match request.verb:
        case Verb.DRAIN:
            name, what = EventName.SHED, "drained"
            backend = backend.having(wish=backend.wish.drain())
        case Verb.RESUME:
            name, what = EventName.UNSHED, "resumed"
            facts, backend = faults.forgive(facts, backend.name), _resumed(facts, backend)
        case Verb.RESTART:
            name, what = EventName.RESTART, "restart asked"
            resting = backend.phase in (Phase.BACKOFF, Phase.FAILED, Phase.STOPPED)
            wish = backend.wish.start_anew(running=not resting)
            backend = backend.having(wish=wish, history=backend.history.forgiven())
        case Verb.SLEEP:
            if sleeping.able(facts.settings, backend.name):
                return facts, None  # told to the asker already (core/backend/asking)
            name, what = EventName.SLEEP, "sleep asked"
            backend = sleeping.ask(facts, backend, request.by, drain_of(facts, backend.name))
        case Verb.WAKE:
            name, what = EventName.WAKE, "wake asked"
            backend = backend.having(sleep=sleeping.call_back(backend.sleep))
        case Verb.RESET_CAP | Verb.STOP_ALL:
            return facts, None
    said = facts.say(
        name,
        Severity.NOTICE,
        f"{backend.name}: {what} by {request.by}",
        backend.name,
        trouble(backend.name),
        reason=f"operator: {request.by}",
    )
    return facts.put(backend), said


def _resumed(facts: Facts, backend: BackendState) -> BackendState:
    sleep = sleeping.call_back(backend.sleep, wake=backend.phase is Phase.SLEEPING)
    history = backend.history.forgiven()
    changed = backend.having(wish=backend.wish.resume(), history=history, sleep=sleep)
    failed = backend.phase is Phase.FAILED
    return facts.enter(changed, Phase.STOPPED, "resumed") if failed else changed


def drain_of(facts: Facts, name: str) -> float:
    """Seconds its requests may still run."""
    wanted = facts.wanted(name)
    return wanted.drain_timeout_s if wanted else 0.0
