"""From the first sign of a failure to the moment its bytes are back.

A dead backend is examined (what were its last words?), its whole cgroup is killed, its bytes are
waited for, and only then it goes to back-off, to rest, or to wait for a new start.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.backend import breaker
from arbiterd.core.backend.backend_state import After, BackendState, serves
from arbiterd.core.backend.release import released
from arbiterd.core.facts import Facts, Step
from arbiterd.core.limits import DRAINED_GRACE_S, HALF_OPEN_S, RELEASE_SLOW_S
from arbiterd.core.memory import learn
from arbiterd.core.notes import About, Heard, Note, Notes, Order, trouble
from arbiterd.core.traffic.evidence import traffic
from arbiterd.engines import engine_of
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.actions import StopBackend, ThawBackend
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.launch import UnitState
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size

_OOM = (
    CauseClass.NOT_ENOUGH_FREE,
    CauseClass.BUDGET_TOO_SMALL,
    CauseClass.OOM_START,
    CauseClass.OOM_RUNTIME,
    CauseClass.POOL_FULL,
    CauseClass.HOST_RAM,
    CauseClass.DEVICE_FULL,
    CauseClass.NEIGHBOUR,
)
WORDS_WITHIN_S = 1.5  # reading the last 500 lines from the journal took 30-60 ms on a busy machine


def fail(facts: Facts, backend: BackendState, text: str, cause: Cause | None) -> Step:
    """The backend failed. ``cause`` None: its last words are still to be read."""
    about, message = trouble(backend.name), f"{backend.name}: {text}"
    again = facts.say(EventName.EXIT, Severity.ERROR, message, backend.name, about, reason=text)
    said = facts.open(EventName.EXIT, Severity.ERROR, message, about, otherwise=again)
    changed = backend.fail(cause, facts.seen.now + WORDS_WITHIN_S)
    return Step(facts.enter(changed, Phase.STOPPING, text), (said,))


def grace_after_drain(facts: Facts, backend: BackendState, *, busy: bool) -> float | None:
    """Seconds from SIGTERM to SIGKILL of the whole cgroup, None: the engine's own drain and 15 s."""
    # Ended for memory: its requests have had their time, a slow SIGTERM is time the card has not.
    pressed = (
        backend.history.cause is not None and backend.history.cause.cause is CauseClass.OVER_CAP
    )
    if pressed and backend.after in (After.BACKOFF, After.FAILED):
        return 0.0
    # A request that outlasts its drain at the door would have the engine's own drain on top, and
    # vLLM 0.32 then stays until that client leaves. Idle, it stays for its --shutdown-timeout, and
    # so do its bytes (facts/engines.md, 3.5).
    known = facts.known(backend.name)
    again = known is not None and engine_of(known.kind).drains_itself
    if (busy or again) and traffic(facts, backend.name) is not None:
        return DRAINED_GRACE_S
    return None


def give_back(
    facts: Facts, backend: BackendState, after: After, reason: str, grace_s: float | None = None
) -> Step:
    """Order the stop of the whole cgroup and go to stopping."""
    name, gpu, about = backend.name, facts.gpu_of(backend.name), trouble(backend.name)
    thaw: Notes = ()
    if facts.unit(name).frozen:  # a frozen unit may refuse its stop (facts/systemd.md)
        why = f"before its stop: {reason}"
        thaw = (Order(ThawBackend(facts.action_id("thaw", name), name, gpu, why)),)
    known = facts.known(name)
    grace = grace_s if grace_s is not None else (known.drain_timeout_s if known else 30.0) + 15.0
    action = StopBackend(facts.action_id("stop", name), name, gpu, reason, grace)
    expected = sum(backend.run.held.values())
    if grace > 0.0:
        event = EventName.STOP
    elif backend.history.cause is not None or facts.unit(name).state is UnitState.EXITED:
        event = EventName.CLEANUP  # it ended or failed by itself: nobody has asked it to go
    else:
        event = EventName.KILL
    said = facts.say(
        event,
        Severity.INFO,
        f"{name}: stopping, expecting {format_size(expected)} back ({reason})",
        name,
        about,
        action=action.id,
        reason=reason,
        bytes_expected=expected,
    )
    changed = backend.stop(action.id, after)
    order = Order(action, about, bytes_expected=expected)
    return Step(facts.enter(changed, Phase.STOPPING, reason), (*thaw, order, said))


def bury(facts: Facts, backend: BackendState) -> Step:
    """One tick of stopping."""
    if backend.deadline is not None:  # a failure that has not been examined yet
        return _examine(facts, backend)
    outcome = facts.outcome_of(backend.pending)
    notes: Notes = ()
    if outcome is not None:
        notes = (Heard(outcome),)
        backend = backend.heard()
        if outcome.ok:
            backend = backend.having(run=backend.run.gone(outcome.at))
        else:
            notes = (*notes, *_slow(facts, backend, outcome.detail))
            there = facts.unit(backend.name).state is not UnitState.ABSENT
            if there and not facts.seen.stopping:
                return _unkillable(facts, backend, outcome.detail).after(notes)
    if backend.pending:
        return Step(backend, notes)
    if facts.unit(backend.name).state is not UnitState.ABSENT and backend.run.gone_at is None:
        again = give_back(facts, backend, backend.after, backend.reason, grace_s=0.0)
        return again.after(notes)
    if backend.run.gone_at is None:
        backend = backend.having(run=backend.run.gone(facts.seen.now))
    gone_at = backend.run.gone_at or facts.seen.now
    if (
        released(facts, backend) or facts.seen.stopping
    ):  # nothing starts after us: no bytes to await
        return _gone(facts, backend).after(notes)
    late = facts.seen.now - gone_at >= RELEASE_SLOW_S and _seen(facts, backend)
    if late and not backend.run.slow_told:
        notes = (*notes, *_slow(facts, backend, "its processes are gone"))
        backend = backend.having(run=backend.run.late())
    return Step(backend, notes)


def _seen(facts: Facts, backend: BackendState) -> bool:
    """Whether the devices that hold its bytes can be read: blind, nothing is known to be late."""
    return all(
        seen is not None and seen.state is GpuState.OK
        for seen in map(facts.seen.devices.get, backend.run.held)
    )


def _unkillable(facts: Facts, backend: BackendState, detail: str) -> Step:
    """SIGKILL has not ended it: it hangs in the kernel (D state), and a second one would not either. Its
    bytes stay booked; the next look is in HALF_OPEN_S, or when it is gone.
    """
    reason = f"its processes cannot be ended: {detail}"
    waits = backend.history.waits(facts.seen.now + HALF_OPEN_S)
    rests = backend.due(None).having(run=backend.run.hangs(), history=waits)
    return Step(facts.enter(rests, Phase.FAILED, reason))


def _examine(facts: Facts, backend: BackendState) -> Step:
    """Read its last words, name the cause, decide on back-off or rest, then clean up."""
    words = facts.seen.logs.get(backend.name)
    unit = facts.unit(backend.name)
    if (
        words is None
        and unit.state is UnitState.EXITED
        and facts.seen.now < (backend.deadline or 0)
    ):
        return Step(backend)
    wanted = facts.wanted(backend.name)
    if wanted is None:
        return give_back(facts, backend, After.STOPPED, backend.reason, grace_s=0.0)
    cause = backend.history.cause
    spoken = engine_of(wanted.kind).classify(
        words or (), unit.exit, was_ready=backend.run.ready_at is not None
    )
    if cause is None or (spoken.cause is not CauseClass.OTHER and words):
        cause = spoken
    cause = learn.refine(facts, backend, cause, words or ())
    taught = learn.after_oom(facts, backend, cause)
    cause = taught.cause
    counted, open_ = breaker.failed(taught.backend, cause, wanted, facts.seen)
    after = After.BACKOFF
    if not cause.retry:
        counted = counted.having(history=counted.history.waits(float("inf")))
        after = After.FAILED
    elif open_:
        after = After.FAILED
    told = (*taught.notes, *_cause(facts, counted, cause, after))
    gone = give_back(facts, counted, after, cause.summary, grace_s=0.0).after(told)
    return replace(gone, learned=taught.learned)


def _cause(facts: Facts, backend: BackendState, cause: Cause, after: After) -> Notes:
    about, notes = trouble(backend.name), list[Note]()
    if cause.cause in _OOM:
        what = learn.MITIGATION.get(cause.cause, "")
        text = f"{backend.name}: out of memory ({cause.cause.value}): {cause.summary}; {what}"
        notes.append(
            facts.say(
                EventName.OOM, Severity.ERROR, text, backend.name, about, reason=cause.line,
                kind=cause.cause.value,
            )
        )  # fmt: skip
    if after is After.FAILED:
        if not cause.retry:
            text = f"{backend.name}: will not be started again unchanged: {cause.summary}"
        else:
            wait = format_duration(backend.history.not_before - facts.seen.now)
            count = len(backend.history.failures)
            text = f"{backend.name}: failed {count} times in a row, next try in {wait}"
        name, severity = EventName.CRASH_LOOP, Severity.CRITICAL
        notes.append(facts.say(name, severity, text, backend.name, about, reason=cause.summary))
    return tuple(notes)


def _slow(facts: Facts, backend: BackendState, detail: str) -> Notes:
    """Its bytes are late: said once, unless it is said already."""
    if backend.run.slow_told:
        return ()
    pids: list[int] = []
    for seen in facts.seen.devices.values():
        if isinstance(seen.processes, Known):
            pids += [p.pid for p in seen.processes.value if p.holder == backend.name]
    expected = format_size(sum(backend.run.held.values()))
    text = f"{backend.name}: {expected} are not back yet: {detail}"
    name = EventName.RELEASE_SLOW
    about = About((name,), backend.name)
    return (facts.open(name, Severity.WARNING, text, about, pids=tuple(pids)),)


def slow_over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Its bytes are back."""
    backend = facts.backends.get(one.backend)
    if backend is not None and backend.phase is Phase.STOPPING:
        return None
    return EventName.RECOVERED, f"{one.backend}: its memory is back"


def over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Trouble ends where the backend serves, or where nobody wants it to. A leak while it serves is over by
    the ledger (core/memory/offenders.py).
    """
    name, backend = one.backend, facts.backends.get(one.backend)
    if not name:  # a door's port
        return None
    if backend is None or backend.phase is Phase.STOPPED:
        return EventName.STOP, f"{name}: stopped on purpose"
    well = serves(backend) and backend.vitals.sick_since is None
    if not well or one.event is EventName.LEAK:
        return None
    ready = backend.phase is Phase.READY
    return EventName.RECOVERED, f"{name}: recovered, it {'serves' if ready else 'is drained'}"


def _gone(facts: Facts, backend: BackendState) -> Step:
    """Nothing is left and the bytes are back."""
    now = facts.seen.now
    freed = sum(backend.run.held.values())
    took = now - backend.since
    text = f"{backend.name}: gone, {format_size(freed)} came back in {format_duration(took)}"
    said = facts.say(
        EventName.RELEASED,
        Severity.INFO,
        text,
        backend.name,
        trouble(backend.name),
        bytes_freed=freed,
        took_ms=took * 1000,
    )
    return _rest(facts, backend.gone(now)).after((said,))


def _rest(facts: Facts, backend: BackendState) -> Step:
    why = backend.history.cause.summary if backend.history.cause else backend.reason
    match backend.after:
        case After.WAITING | After.SLEEPING:
            return Step(facts.enter(backend, Phase.WAITING, "waits for its turn"))
        case After.STOPPED:
            why = "stopped by hand" if backend.wish.parked else "not wanted"
            rested = backend.having(history=backend.history.put_away())
            return Step(facts.enter(rested, Phase.STOPPED, why))
        case After.BACKOFF if facts.seen.now >= backend.history.not_before:
            return Step(facts.enter(backend, Phase.WAITING, "waits for its turn"))
        case After.BACKOFF:
            wait = format_duration(backend.history.not_before - facts.seen.now)
            return Step(facts.enter(backend, Phase.BACKOFF, f"{why}; next start in {wait}"))
        case After.FAILED:
            return Step(facts.enter(backend, Phase.FAILED, why))
