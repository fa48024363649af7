"""From the first sign of a failure to the moment its bytes are back.

A dead backend is examined (what were its last words?), its whole cgroup is killed, its bytes are
waited for, and only then it goes to back-off, to rest, or to wait for a new start.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import breaker, learn
from arbiterd.core.desk import Desk
from arbiterd.core.evidence import traffic
from arbiterd.core.limits import DRAINED_GRACE_S, RELEASE_SLOW_S
from arbiterd.core.release import released
from arbiterd.core.state import After, BackendState, Sleep
from arbiterd.engines import engine_of
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.actions import StopBackend, ThawBackend
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitState
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size

# One incident from the first sign to recovery, whatever it turns out to be.
TROUBLE = (
    EventName.EXIT,
    EventName.OOM,
    EventName.STUCK,
    EventName.UNHEALTHY,
    EventName.CRASH_LOOP,
    EventName.BLOCKED_START,
    EventName.PORT_TAKEN,
    EventName.LEAK,
)
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


def fail(desk: Desk, backend: BackendState, text: str, cause: Cause | None) -> None:
    """The backend failed. ``cause`` None: its last words are still to be read."""
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    message = f"{backend.name}: {text}"
    if trouble is None:
        desk.raise_incident(EventName.EXIT, Severity.ERROR, message, backend=backend.name)
    else:
        desk.tell(
            EventName.EXIT, Severity.ERROR, message, backend.name, incident=trouble.id, reason=text
        )
    changed = replace(
        backend,
        cause=cause,
        after=After.BACKOFF,
        pending="",
        deadline=desk.seen.now + WORDS_WITHIN_S,
        gone_at=None,
        warm_pending="",
    )
    desk.enter(changed, Phase.STOPPING, text)


def grace_after_drain(desk: Desk, backend: BackendState, *, busy: bool) -> float | None:
    """Seconds from SIGTERM to SIGKILL of the whole cgroup, None: the engine's own drain and 15 s."""
    # Ended for memory: its requests have had their time, a slow SIGTERM is time the card has not.
    pressed = backend.cause is not None and backend.cause.cause is CauseClass.OVER_CAP
    if pressed and backend.after in (After.BACKOFF, After.FAILED):
        return 0.0
    # A request that outlasts its drain at the door would have the engine's own drain on top, and
    # vLLM 0.32 then stays until that client leaves. Idle, it stays for its --shutdown-timeout, and
    # so do its bytes (facts/engines.md, 3.5).
    known = desk.known(backend.name)
    again = known is not None and engine_of(known.kind).drains_itself
    if (busy or again) and traffic(desk, backend.name) is not None:
        return DRAINED_GRACE_S
    return None


def give_back(
    desk: Desk, backend: BackendState, after: After, reason: str, grace_s: float | None = None
) -> None:
    """Order the stop of the whole cgroup and go to stopping."""
    if desk.unit(backend.name).frozen:  # a frozen unit may refuse its stop (facts/systemd.md)
        why = f"before its stop: {reason}"
        desk.act(
            ThawBackend(
                desk.action_id("thaw", backend.name), backend.name, desk.gpu_of(backend.name), why
            )
        )
    known = desk.known(backend.name)
    grace = grace_s if grace_s is not None else (known.drain_timeout_s if known else 30.0) + 15.0
    action = StopBackend(
        desk.action_id("stop", backend.name), backend.name, desk.gpu_of(backend.name), reason, grace
    )
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    expected = sum(backend.held_bytes.values())
    desk.act(action, trouble.id if trouble else "", bytes_expected=expected)
    if grace > 0.0:
        name = EventName.STOP
    elif backend.cause is not None or desk.unit(backend.name).state is UnitState.EXITED:
        name = EventName.CLEANUP  # it ended or failed by itself: nobody has asked it to go
    else:
        name = EventName.KILL
    desk.tell(
        name,
        Severity.INFO,
        f"{backend.name}: stopping, expecting {format_size(expected)} back ({reason})",
        backend.name,
        action=action.id,
        reason=reason,
        bytes_expected=expected,
        incident=trouble.id if trouble else "",
    )
    changed = replace(backend, after=after, pending=action.id, gone_at=None, deadline=None)
    desk.enter(changed, Phase.STOPPING, reason)


def bury(desk: Desk, backend: BackendState) -> None:
    """One tick of stopping."""
    if backend.deadline is not None:  # a failure that has not been examined yet
        _examine(desk, backend)
        return
    outcome = desk.outcome_of(backend.pending)
    if outcome is not None:
        desk.note_outcome(outcome)
        backend = desk.put(replace(backend, pending=""))
        if outcome.ok:
            backend = desk.put(replace(backend, gone_at=outcome.at))
        else:
            _say_slow(desk, backend, outcome.detail)
    if backend.pending:
        return
    if desk.unit(backend.name).state is not UnitState.ABSENT and backend.gone_at is None:
        give_back(desk, backend, backend.after, backend.reason, grace_s=0.0)
        return
    if backend.gone_at is None:
        backend = desk.put(replace(backend, gone_at=desk.seen.now))
    if released(desk, backend) or desk.seen.stopping:  # nothing starts after us: no bytes to await
        _gone(desk, backend)
    elif desk.seen.now - (backend.gone_at or desk.seen.now) >= RELEASE_SLOW_S:
        _say_slow(desk, backend, "its processes are gone")


def _examine(desk: Desk, backend: BackendState) -> None:
    """Read its last words, name the cause, decide on back-off or rest, then clean up."""
    words = desk.seen.logs.get(backend.name)
    unit = desk.unit(backend.name)
    if words is None and unit.state is UnitState.EXITED and desk.seen.now < (backend.deadline or 0):
        return
    wanted = desk.wanted(backend.name)
    if wanted is None:
        give_back(desk, backend, After.STOPPED, backend.reason, grace_s=0.0)
        return
    cause = backend.cause
    spoken = engine_of(wanted.kind).classify(
        words or (), unit.exit, was_ready=backend.ready_at is not None
    )
    if cause is None or (spoken.cause is not CauseClass.OTHER and words):
        cause = spoken
    cause = learn.refine(desk, backend, cause, words or ())
    backend, cause = learn.after_oom(desk, backend, cause)
    counted, open_ = breaker.failed(
        replace(backend, cause=cause), wanted, desk.seen.now, desk.seen.jitter
    )
    after = After.BACKOFF
    if not cause.retry:
        counted = replace(counted, not_before=float("inf"))
        after = After.FAILED
    elif open_:
        after = After.FAILED
    _tell_cause(desk, counted, cause, after)
    give_back(desk, counted, after, cause.summary, grace_s=0.0)


def _tell_cause(desk: Desk, backend: BackendState, cause: Cause, after: After) -> None:
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    incident = trouble.id if trouble else ""
    if cause.cause in _OOM:
        what = learn.MITIGATION.get(cause.cause, "")
        text = f"{backend.name}: out of memory ({cause.cause.value}): {cause.summary}; {what}"
        desk.tell(
            EventName.OOM, Severity.ERROR, text, backend.name, incident=incident, reason=cause.line,
            kind=cause.cause.value,
        )  # fmt: skip
    if after is After.FAILED:
        if not cause.retry:
            text = f"{backend.name}: will not be started again unchanged: {cause.summary}"
        else:
            wait = format_duration(backend.not_before - desk.seen.now)
            count = len(backend.failures)
            text = f"{backend.name}: failed {count} times in a row, next try in {wait}"
        desk.tell(
            EventName.CRASH_LOOP,
            Severity.CRITICAL,
            text,
            backend.name,
            incident=incident,
            reason=cause.summary,
        )


def _say_slow(desk: Desk, backend: BackendState, detail: str) -> None:
    if backend.release_slow_said:
        return
    desk.put(replace(backend, release_slow_said=True))
    pids: list[int] = []
    for seen in desk.seen.devices.values():
        if isinstance(seen.processes, Known):
            pids += [p.pid for p in seen.processes.value if p.holder == backend.name]
    expected = format_size(sum(backend.held_bytes.values()))
    text = f"{backend.name}: {expected} are not back yet: {detail}"
    if not desk.open_incident(backend.name, "", EventName.RELEASE_SLOW):
        desk.raise_incident(
            EventName.RELEASE_SLOW,
            Severity.WARNING,
            text,
            backend=backend.name,
            pids=tuple(pids),
        )


def _gone(desk: Desk, backend: BackendState) -> None:
    """Nothing is left and the bytes are back."""
    now = desk.seen.now
    freed = sum(backend.held_bytes.values())
    took = now - backend.since
    slow = desk.open_incident(backend.name, "", EventName.RELEASE_SLOW)
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    text = f"{backend.name}: gone, {format_size(freed)} came back in {format_duration(took)}"
    desk.tell(
        EventName.RELEASED,
        Severity.INFO,
        text,
        backend.name,
        bytes_freed=freed,
        took_ms=took * 1000,
        incident=trouble.id if trouble else "",
    )
    if slow:
        desk.close_incident(slow.id, EventName.RECOVERED, text)
    changed = replace(
        backend,
        stop_took_s=took,
        invocation="",
        pending="",
        held_bytes={},
        spare_then={},
        gone_at=None,
        deadline=None,
        hard_deadline=None,
        release_slow_said=False,
        warm_done=False,
        warm_failures=0,
        warm_not_before=0.0,
        sleep=Sleep(),
    )
    _rest(desk, changed)


def _rest(desk: Desk, backend: BackendState) -> None:
    now = desk.seen.now
    match backend.after:
        case After.WAITING:
            desk.enter(backend, Phase.WAITING, "waits for its turn")
        case After.STOPPED:
            trouble = desk.open_incident(backend.name, "", *TROUBLE)
            if trouble:
                text = f"{backend.name}: stopped on purpose"
                desk.close_incident(trouble.id, EventName.STOP, text)
            why = "stopped by hand" if backend.parked else "not wanted"
            desk.enter(replace(backend, attempt=0, failures=(), cause=None), Phase.STOPPED, why)
        case After.BACKOFF:
            wait = format_duration(max(0.0, backend.not_before - now))
            why = backend.cause.summary if backend.cause else backend.reason
            desk.enter(backend, Phase.BACKOFF, f"{why}; next start in {wait}")
        case After.FAILED:
            why = backend.cause.summary if backend.cause else backend.reason
            desk.enter(backend, Phase.FAILED, why)
        case After.SLEEPING:
            desk.enter(backend, Phase.WAITING, "waits for its turn")
