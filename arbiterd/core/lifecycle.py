"""The life of one backend: one function per phase, each looks at everything anew every tick.

Which phase may follow which: core/phases.py.

No phase waits for a single event: deadlines live in the state (design, section 2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from arbiterd.core import (
    breaker,
    evidence,
    judge,
    learn,
    progress,
    reclaim,
    returned,
    sleeping,
    trying,
    warm,
)
from arbiterd.core.desk import Desk
from arbiterd.core.failing import TROUBLE, bury, fail, give_back, grace_after_drain
from arbiterd.core.gate import (
    TOLD,
    ask_for_nodes,
    blocked,
    context_of,
    heard_of_nodes,
    holders,
    port_lost,
)
from arbiterd.core.limits import BLOCKED_AFTER_S, PORT_TAKEN_AFTER_S, START_HARD_FACTOR
from arbiterd.core.planning import launch_spec
from arbiterd.core.release import remember
from arbiterd.core.state import (
    DRAIN_SENTENCES,
    After,
    Ask,
    BackendState,
    Canaries,
    DrainCause,
    Sleep,
    Vitals,
    updated,
)
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.actions import StartBackend
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitState
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size


def step(desk: Desk, backend: BackendState) -> Ask | None:
    """Advance one backend by one tick, up to what takes memory: that it asks for (core/grants.py)."""
    match backend.phase:
        case Phase.STOPPED:
            _stopped(desk, backend)
        case Phase.WAITING:
            return _waiting(desk, backend)
        case Phase.STARTING:
            _starting(desk, backend)
        case Phase.READY:
            return _ready(desk, backend)
        case Phase.SLEEPING:
            if not _ended(desk, backend) and _still_wanted(desk, backend):
                return sleeping.step(desk, desk.backends[backend.name])
        case Phase.DRAINING:
            _draining(desk, backend)
        case Phase.STOPPING:
            bury(desk, backend)
        case Phase.BACKOFF | Phase.FAILED:
            _resting(desk, backend)
        case _:
            assert_never(backend.phase)
    return None


def runnable(desk: Desk, backend: BackendState) -> bool:
    """Whether this backend should run at all now."""
    return desk.wanted(backend.name) is not None and not backend.parked and not desk.seen.stopping


def stop(desk: Desk, backend: BackendState, after: After, why: DrainCause) -> None:
    """Drain first, then stop."""
    known = desk.known(backend.name)
    drain = known.drain_timeout_s if known else 30.0
    deadline = desk.seen.now + drain
    changed = replace(backend, after=after, deadline=deadline, pending="", drain=why)
    desk.enter(changed, Phase.DRAINING, DRAIN_SENTENCES[why])


def _drained(desk: Desk, backend: BackendState) -> None:
    """An operator's drain: without a deadline."""
    changed = replace(backend, deadline=None, drain=DrainCause.OPERATOR)
    desk.enter(changed, Phase.DRAINING, DRAIN_SENTENCES[DrainCause.OPERATOR])


# -- phases --------------------------------------------------------------------------------------
def _stopped(desk: Desk, backend: BackendState) -> None:
    unit = desk.unit(backend.name)
    if unit.state is not UnitState.ABSENT and not backend.pending:
        give_back(desk, backend, After.STOPPED, "left over from before", grace_s=0.0)
        return
    if not runnable(desk, backend):
        return
    desk.enter(backend, Phase.WAITING, "waits for its turn")


def _waiting(desk: Desk, backend: BackendState) -> Ask | None:
    if not runnable(desk, backend):
        _put_away(desk, backend)
        return None
    if desk.unit(backend.name).state is not UnitState.ABSENT:
        give_back(desk, backend, After.WAITING, "left over from before", grace_s=0.0)
        return None
    heard_of_nodes(desk, backend)
    return Ask.START


def start(desk: Desk, backend: BackendState) -> None:
    """Start it, or keep why that must wait."""
    reason = blocked(desk, backend)
    if reason is None:
        _start(desk, backend)
        return
    backend = ask_for_nodes(desk, backend, reason)
    changed = desk.enter(replace(backend, blocked_by=reason.kind), Phase.WAITING, str(reason))
    if reason.kind in TOLD:
        _say_blocked(desk, changed, str(reason))


def _say_blocked(desk: Desk, backend: BackendState, reason: str) -> None:
    taken = backend.name in desk.seen.host.taken_ports
    name = EventName.PORT_TAKEN if taken else EventName.BLOCKED_START
    waited = desk.seen.now - backend.since
    if waited < (PORT_TAKEN_AFTER_S if taken else BLOCKED_AFTER_S):
        return
    open_ = desk.open_incident(backend.name, "", *TROUBLE, name)
    if open_ is not None:
        if taken:  # whose port it is must be told, whatever it was that ended the engine
            desk.tell_within(open_, name, f"{backend.name} cannot start: {reason}")
        return
    gpu = desk.gpu_of(backend.name)
    seen = desk.seen.devices.get(gpu)
    pids: tuple[int, ...] = ()
    evidence: tuple[tuple[str, str], ...] = ()
    if seen and isinstance(seen.processes, Known):
        pids = tuple(p.pid for p in seen.processes.value if p.holder != backend.name)
        evidence = (("holders", holders(seen, backend.name)),)
    desk.raise_incident(
        name,
        Severity.WARNING,
        f"{backend.name} cannot start: {reason}",
        backend=backend.name,
        pids=pids,
        evidence=evidence,
    )


def _start(desk: Desk, backend: BackendState) -> None:
    settings = desk.settings
    learn.before_start(desk, backend.name)
    wanted = settings.active.backends[backend.name]
    context = context_of(desk, backend.name)
    spec = launch_spec(context)
    reason = backend.cause.summary if backend.cause else "configured"
    action = StartBackend(
        desk.action_id("start", backend.name), backend.name, desk.gpu_of(backend.name), reason, spec
    )
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    desk.act(action, trouble.id if trouble else "")
    now = desk.seen.now
    again = backend.attempt > 0
    changed = replace(
        backend,
        pending=action.id,
        intent=spec.intent,
        invocation="",
        deadline=now + wanted.start_timeout_s,
        hard_deadline=now + wanted.start_timeout_s * START_HARD_FACTOR,
        ready_at=None,
        blocked_by="",
        warm_done=False,
        warm_failures=0,
        warm_pending="",
        vitals=Vitals(),
        sleep=Sleep(),
        canaries=Canaries(),
        missed={},
        started_cap=desk.placements[backend.name].cap_bytes,
        restarts=backend.restarts + (1 if again or backend.restart_asked else 0),
        restart_asked=False,
        gone_at=None,
        release_slow_said=False,
    )
    desk.enter(changed, Phase.STARTING, "starting")
    cap = format_size(desk.placements[backend.name].cap_bytes)
    desk.tell(
        EventName.RESTART if again else EventName.START,
        Severity.INFO,
        f"{backend.name}: starting with a cap of {cap}"
        + (f" (attempt {backend.attempt + 1})" if again else ""),
        backend.name,
        action=action.id,
        reason=reason,
        incident=trouble.id if trouble else "",
    )


def _starting(desk: Desk, backend: BackendState) -> None:
    outcome = desk.outcome_of(backend.pending)
    if outcome is not None:
        desk.note_outcome(outcome)
        backend = desk.put(replace(backend, pending=""))
        if not outcome.ok:
            cause = Cause(CauseClass.OTHER, "", outcome.detail)
            fail(desk, backend, outcome.detail, cause)
            return
    unit = desk.unit(backend.name)
    if _ended(desk, backend) or not _still_wanted(desk, backend):
        return
    if unit.state is UnitState.RUNNING:
        held, spare = remember(desk, backend)
        backend = desk.put(
            replace(backend, invocation=unit.invocation, held_bytes=held, spare_then=spare)
        )
        alive = desk.seen.health.get(backend.name)
        if alive and isinstance(alive.alive, Known) and alive.alive.value.verdict.ok:
            if trying.over(desk, backend):
                _became_ready(desk, desk.backends[backend.name])
            return
    if unit.state is UnitState.RUNNING and port_lost(desk, backend):
        give_back(desk, backend, After.WAITING, desk.seen.host.taken_ports[backend.name])
        return
    _watch_start(desk, backend)


def _became_ready(desk: Desk, backend: BackendState) -> None:
    now = desk.seen.now
    took = now - backend.since
    changed = replace(
        backend,
        deadline=None,
        hard_deadline=None,
        adopted=False,
        ready_at=now,
        start_took_s=backend.start_took_s if backend.adopted else took,
        vitals=judge.fresh(now),
        pending="",
    )
    if backend.held:
        _drained(desk, changed)
    else:
        desk.enter(changed, Phase.READY, "")
    text = f"{backend.name}: ready after {format_duration(took)}"
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    desk.tell(
        EventName.READY,
        Severity.INFO,
        text,
        backend.name,
        took_ms=took * 1000,
        incident=trouble.id if trouble else "",
    )
    if trouble:
        desk.close_incident(trouble.id, EventName.RECOVERED, f"{backend.name}: recovered, {text}")


def _watch_start(desk: Desk, backend: BackendState) -> None:
    """Deadline, moved on while the start makes progress."""
    now = desk.seen.now
    wanted = desk.wanted(backend.name)
    if wanted is None or backend.deadline is None or backend.hard_deadline is None:
        return
    if progress.moved(backend, now):
        limit = max(backend.deadline, now + wanted.start_timeout_s / 2)
        backend = desk.put(replace(backend, deadline=min(limit, backend.hard_deadline)))
    if now >= (backend.deadline or now):
        took = format_duration(now - backend.since)
        text = f"not ready after {took} (start_timeout {format_duration(wanted.start_timeout_s)})"
        fail(desk, backend, text, Cause(CauseClass.OTHER, "", text))


def _ready(desk: Desk, backend: BackendState) -> Ask | None:
    if _ended(desk, backend) or not _still_wanted(desk, backend):
        return None
    if desk.unit(backend.name).state is UnitState.STOPPING:
        return None  # by a person's hand: its door is shut (views.not_accepting), its end is still to come
    wanted = desk.settings.active.backends[backend.name]
    backend, why = returned.look(desk, backend)
    if why:
        fail(desk, backend, why, Cause(CauseClass.OTHER, "", why))
        return None
    held, spare = remember(desk, backend)
    backend = updated(breaker.closed(backend, desk.seen.now), held_bytes=held, spare_then=spare)
    backend = _vitals(desk, backend, wanted.stuck_after_s)
    sick_since = backend.vitals.sick_since
    if sick_since is not None and desk.seen.now - sick_since >= wanted.stuck_after_s:
        fail(desk, backend, backend.vitals.why, Cause(CauseClass.OTHER, "", backend.vitals.why))
        return None
    if backend.held:
        _drained(desk, backend)
        return None
    return warm.note(desk, desk.put(backend))


def _vitals(desk: Desk, backend: BackendState, stuck_after_s: float) -> BackendState:
    """Fold in the probes; say when it falls sick and when it is well again."""
    health = desk.seen.health.get(backend.name)
    if health is None:
        return desk.put(backend)
    old, now = backend.vitals, desk.seen.now
    if trying.needed(desk, backend):
        seen, kept = evidence.answers(desk, backend.name), bool(backend.canaries.kept)
        new = judge.judge_by_door(old, health, seen, stuck_after_s, now, canary=kept)
        if new.suspect and not old.suspect:
            trying.say_suspect(desk, backend, stuck_after_s)
    else:
        progress = evidence.progress(desk, backend.name)
        new = judge.judge(old, health, progress, stuck_after_s, now)
    reason = backend.reason if backend.held else new.why if new.sick_since else ""
    backend = desk.put(updated(backend, vitals=new, reason=reason))
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    if new.sick_since is not None and old.sick_since is None and not trouble:
        name = EventName.STUCK if judge.is_stuck(new) else EventName.UNHEALTHY
        text = f"{backend.name}: takes no new work: {new.why}"
        desk.raise_incident(name, Severity.ERROR, text, backend=backend.name)
    elif new.sick_since is None and old.sick_since is not None and trouble:
        text = f"{backend.name}: answers again"
        desk.close_incident(trouble.id, EventName.RECOVERED, text)
    return backend


def _draining(desk: Desk, backend: BackendState) -> None:
    if _ended(desk, backend):
        return
    wanted = desk.wanted(backend.name)
    if backend.deadline is None:
        if backend.held and runnable(desk, backend):
            if wanted is not None:
                _vitals(desk, backend, wanted.stuck_after_s)
            return
        if runnable(desk, backend):
            desk.enter(backend, Phase.READY, "")
            return
        stop(desk, backend, After.STOPPED, DrainCause.UNWANTED)
        return
    held, spare = remember(desk, backend)
    backend = desk.put(replace(backend, held_bytes=held, spare_then=spare))
    busy = evidence.busy(desk, backend.name, backend.since)
    if (busy and desk.seen.now < (backend.deadline or 0.0)) or reclaim.spared(desk, backend):
        return
    if backend.after is After.SLEEPING:
        sleeping.fall(desk, backend)
        return
    grace = grace_after_drain(desk, backend, busy=busy)
    give_back(desk, backend, backend.after, backend.reason, grace_s=grace)


def _resting(desk: Desk, backend: BackendState) -> None:
    if not runnable(desk, backend):
        _put_away(desk, backend)
        return
    if desk.unit(backend.name).state is not UnitState.ABSENT:
        give_back(desk, backend, After.BACKOFF, "left over from before", grace_s=0.0)
        return
    if desk.seen.now >= backend.not_before:
        desk.enter(backend, Phase.WAITING, "waits for its turn")


# -- shared --------------------------------------------------------------------------------------
def _put_away(desk: Desk, backend: BackendState) -> None:
    """Wanted no more while it does not run: its trouble is over, and a backend that the mode does not
    name is forgotten soon, so nobody would close its incident later.
    """
    trouble = desk.open_incident(backend.name, "", *TROUBLE)
    if trouble:
        text = f"{backend.name}: stopped on purpose"
        desk.close_incident(trouble.id, EventName.STOP, text)
    desk.enter(replace(backend, attempt=0, failures=(), cause=None), Phase.STOPPED, "not wanted")


def _ended(desk: Desk, backend: BackendState) -> bool:
    """Main process gone, or the unit gone by a person's hand. Any exit nobody asked for is a
    failure, code 0 included: vLLM ends with 0 when its engine dies (vllm #48966).
    """
    unit = desk.unit(backend.name)
    if unit.vanished or (unit.state is UnitState.ABSENT and backend.invocation):
        text = f"{backend.name}: stopped by hand; it stays stopped until: arbiterctl resume {backend.name}"
        desk.tell(EventName.STOPPED_BY_OPERATOR, Severity.WARNING, text, backend.name)
        changed = replace(backend, parked=True, invocation="", pending="", deadline=None)
        trouble = desk.open_incident(backend.name, "", *TROUBLE)
        if trouble:
            desk.close_incident(trouble.id, EventName.STOPPED_BY_OPERATOR, text)
        give_back(desk, changed, After.STOPPED, "stopped by hand", grace_s=0.0)
        return True
    if unit.state is not UnitState.EXITED:
        return False
    asleep = backend.after is After.SLEEPING
    if backend.phase is Phase.DRAINING and backend.deadline is not None and not asleep:
        give_back(desk, backend, backend.after, backend.reason, grace_s=0.0)
        return True
    fail(desk, backend, f"main process ended unasked ({unit.exit})", None)
    return True


def _still_wanted(desk: Desk, backend: BackendState) -> bool:
    """Stop what the mode no longer names, what changed, and what an operator wants restarted."""
    if not runnable(desk, backend):
        stop(desk, backend, After.STOPPED, DrainCause.UNWANTED)
        return False
    if backend.restart_asked:
        stop(desk, backend, After.WAITING, DrainCause.RESTART)
        return False
    return True
