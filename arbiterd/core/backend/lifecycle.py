"""The life of one backend: one function per phase, each looks at everything anew every tick.

Which phase may follow which: core/backend/phases.py. A step changes its own backend and nothing else; what
takes memory it asks for (core/memory/grants.py). No phase waits for a single event: deadlines live in the
state (design, section 2).
"""

from __future__ import annotations

from arbiterd.core.backend import breaker, judge, progress, returned, sleeping, trying, warm
from arbiterd.core.backend.backend_state import (
    DRAIN_SENTENCES,
    After,
    BackendState,
    DrainCause,
    ending,
)
from arbiterd.core.backend.failing import bury, fail, give_back, grace_after_drain
from arbiterd.core.backend.planning import launch_spec
from arbiterd.core.backend.release import remember
from arbiterd.core.facts import Ask, Facts, Step
from arbiterd.core.limits import BLOCKED_AFTER_S, PORT_TAKEN_AFTER_S, START_HARD_FACTOR
from arbiterd.core.memory import learn, lines, reclaim
from arbiterd.core.memory.gate import (
    TOLD,
    ask_for_nodes,
    blocked,
    context_of,
    heard_of_nodes,
    holders,
    port_lost,
)
from arbiterd.core.notes import Heard, Notes, Order, Remark, trouble
from arbiterd.core.traffic import evidence
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.actions import StartBackend
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitState
from arbiterd.model.reading import Known
from arbiterd.model.settings import BackendSettings
from arbiterd.quantities import format_duration, format_size


def step(facts: Facts, backend: BackendState) -> Step:
    """Advance one backend by one tick."""
    match backend.phase:
        case Phase.STOPPED:
            return _stopped(facts, backend)
        case Phase.WAITING:
            return _waiting(facts, backend)
        case Phase.STARTING:
            return _starting(facts, backend)
        case Phase.READY:
            return _leaves(facts, backend) or _ready(facts, backend)
        case Phase.SLEEPING:
            return _leaves(facts, backend) or sleeping.step(facts, backend)
        case Phase.DRAINING:
            return _ended(facts, backend) or _draining(facts, backend)
        case Phase.STOPPING:
            return bury(facts, backend)
        case Phase.BACKOFF | Phase.FAILED:
            return _resting(facts, backend)


def runnable(facts: Facts, backend: BackendState) -> bool:
    """Whether this backend should run at all now."""
    return (
        facts.wanted(backend.name) is not None
        and not backend.wish.parked
        and not facts.seen.stopping
    )


def stop(facts: Facts, backend: BackendState, after: After, why: DrainCause) -> BackendState:
    """Drain first, then stop."""
    known = facts.known(backend.name)
    drain = known.drain_timeout_s if known else 30.0
    deadline = facts.seen.now + drain
    return facts.enter(backend.leave(after, deadline, why), Phase.DRAINING, DRAIN_SENTENCES[why])


def _drained(facts: Facts, backend: BackendState) -> BackendState:
    """An operator's drain: without a deadline."""
    return facts.enter(backend.shed(), Phase.DRAINING, DRAIN_SENTENCES[DrainCause.OPERATOR])


# -- phases --------------------------------------------------------------------------------------
def _stopped(facts: Facts, backend: BackendState) -> Step:
    unit = facts.unit(backend.name)
    if unit.state is not UnitState.ABSENT and not backend.pending:
        if backend.run.unkillable and facts.seen.now < backend.history.not_before:
            return Step(backend)
        return give_back(facts, backend, After.STOPPED, "left over from before", grace_s=0.0)
    if not runnable(facts, backend):
        return Step(backend)
    return Step(facts.enter(backend, Phase.WAITING, "waits for its turn"))


def _waiting(facts: Facts, backend: BackendState) -> Step:
    if not runnable(facts, backend):
        return _put_away(facts, backend)
    if facts.unit(backend.name).state is not UnitState.ABSENT:
        return give_back(facts, backend, After.WAITING, "left over from before", grace_s=0.0)
    return Step(heard_of_nodes(facts, backend), ask=Ask.START)


def start(facts: Facts, backend: BackendState) -> tuple[Facts, Notes]:
    """Start it, or keep why that must wait."""
    reason = blocked(facts, backend)
    if reason is None:
        return _start(facts, backend)
    backend, notes = ask_for_nodes(facts, backend, reason)
    waits = facts.enter(backend.blocked(reason.kind), Phase.WAITING, str(reason))
    if reason.kind in TOLD:
        notes = (*notes, *_blocked_for_long(facts, waits, str(reason)))
    return facts.put(waits), notes


def _blocked_for_long(facts: Facts, backend: BackendState, reason: str) -> Notes:
    taken = backend.name in facts.seen.host.taken_ports
    if facts.seen.now - backend.since < (PORT_TAKEN_AFTER_S if taken else BLOCKED_AFTER_S):
        return ()
    name = EventName.PORT_TAKEN if taken else EventName.BLOCKED_START
    about, text = trouble(backend.name), f"{backend.name} cannot start: {reason}"
    seen = facts.seen.devices.get(facts.gpu_of(backend.name))
    pids: tuple[int, ...] = ()
    who: tuple[tuple[str, str], ...] = ()
    if seen and isinstance(seen.processes, Known):
        pids = tuple(p.pid for p in seen.processes.value if p.holder != backend.name)
        who = (("holders", holders(seen, backend.name)),)
    # Whose port it is must be told, whatever it was that ended the engine.
    remark = Remark(about, name, text) if taken else None
    note = facts.open(
        name, Severity.WARNING, text, about, pids=pids, evidence=who, otherwise=remark
    )
    return (note,)


def _start(facts: Facts, backend: BackendState) -> tuple[Facts, Notes]:
    facts, notes = learn.before_start(facts, backend.name)
    wanted = facts.settings.active.backends[backend.name]
    spec = launch_spec(context_of(facts, backend.name))
    reason = backend.history.cause.summary if backend.history.cause else "configured"
    gpu, about = facts.gpu_of(backend.name), trouble(backend.name)
    id_ = facts.action_id("start", backend.name)
    again, cap = backend.history.attempt > 0, facts.placements[backend.name].cap_bytes
    changed = backend.start(id_, spec.intent, cap, start_deadlines(facts, wanted))
    text = f"{backend.name}: starting with a cap of {format_size(cap)}"
    said = facts.say(
        EventName.RESTART if again else EventName.START,
        Severity.INFO,
        text + (f" (attempt {backend.history.attempt + 1})" if again else ""),
        backend.name,
        about,
        action=id_,
        reason=reason,
    )
    order = Order(StartBackend(id_, backend.name, gpu, reason, spec), about)
    return facts.put(facts.enter(changed, Phase.STARTING, "starting")), (*notes, order, said)


def start_deadlines(facts: Facts, wanted: BackendSettings) -> tuple[float, float]:
    """When a start that begins now must have ended: without progress, and however much it makes."""
    now = facts.seen.now
    return now + wanted.start_timeout_s, now + wanted.start_timeout_s * START_HARD_FACTOR


def _starting(facts: Facts, backend: BackendState) -> Step:
    outcome = facts.outcome_of(backend.pending)
    if outcome is None:
        return _leaves(facts, backend) or _answering(facts, backend)
    backend, heard = backend.heard(), (Heard(outcome),)
    if not outcome.ok:
        cause = Cause(CauseClass.OTHER, "", outcome.detail)
        return fail(facts, backend, outcome.detail, cause).after(heard)
    return (_leaves(facts, backend) or _answering(facts, backend)).after(heard)


def _answering(facts: Facts, backend: BackendState) -> Step:
    """Whether it answers by now."""
    unit = facts.unit(backend.name)
    if unit.state is not UnitState.RUNNING:
        return _watch_start(facts, backend)
    held, spare = remember(facts, backend)
    backend = backend.having(run=backend.run.seen(unit.invocation, held, spare))
    health = facts.seen.health.get(backend.name)
    if health and isinstance(health.alive, Known) and health.alive.value.verdict.ok:
        backend, tried = trying.step(facts, backend)
        return _became_ready(facts, backend) if tried else Step(backend)
    if port_lost(facts, backend):
        thief = facts.seen.host.taken_ports[backend.name]
        return give_back(facts, backend, After.WAITING, thief)
    return _watch_start(facts, backend)


def _became_ready(facts: Facts, backend: BackendState) -> Step:
    now, about = facts.seen.now, trouble(backend.name)
    took = now - backend.since
    changed = backend.ready(now, judge.fresh(now))
    ready = (
        _drained(facts, changed) if backend.wish.drained else facts.enter(changed, Phase.READY, "")
    )
    text = f"{backend.name}: ready after {format_duration(took)}"
    said = facts.say(EventName.READY, Severity.INFO, text, backend.name, about, took_ms=took * 1000)
    return Step(ready, (said,))


def _watch_start(facts: Facts, backend: BackendState) -> Step:
    """Deadline, moved on while the start makes progress."""
    now = facts.seen.now
    wanted = facts.wanted(backend.name)
    if wanted is None or backend.deadline is None or backend.hard_deadline is None:
        return Step(backend)
    if progress.moved(backend, now):
        limit = max(backend.deadline, now + wanted.start_timeout_s / 2)
        backend = backend.due(min(limit, backend.hard_deadline))
    if now < (backend.deadline or now):
        return Step(backend)
    took = format_duration(now - backend.since)
    text = f"not ready after {took} (start_timeout {format_duration(wanted.start_timeout_s)})"
    return fail(facts, backend, text, Cause(CauseClass.OTHER, "", text))


def _ready(facts: Facts, backend: BackendState) -> Step:
    if facts.unit(backend.name).state is UnitState.STOPPING:
        # By a person's hand: its door is shut (views.not_accepting), its end is still to come.
        return Step(backend)
    wanted = facts.settings.active.backends[backend.name]
    backend, why = returned.look(facts, backend)
    if why:
        return fail(facts, backend, why, Cause(CauseClass.OTHER, "", why))
    held, spare = remember(facts, backend)
    backend = breaker.closed(backend, facts.seen.now)
    backend = backend.having(run=backend.run.holding(held, spare))
    backend = lines.drawn(facts, backend)
    backend, notes = _vitals(facts, backend, wanted.stuck_after_s)
    sick_since = backend.vitals.sick_since
    if sick_since is not None and facts.seen.now - sick_since >= wanted.stuck_after_s:
        cause = Cause(CauseClass.OTHER, "", backend.vitals.why)
        return fail(facts, backend, backend.vitals.why, cause).after(notes)
    if backend.wish.drained:
        return Step(_drained(facts, backend), notes)
    return warm.step(facts, backend).after(notes)


def _vitals(
    facts: Facts, backend: BackendState, stuck_after_s: float
) -> tuple[BackendState, Notes]:
    """Fold in the probes; say when it falls sick."""
    health = facts.seen.health.get(backend.name)
    if health is None:
        return backend, ()
    old, now = backend.vitals, facts.seen.now
    notes: Notes = ()
    if trying.needed(facts, backend):
        seen, kept = evidence.answers(facts, backend.name), bool(backend.canaries.kept)
        new = judge.judge_by_door(old, health, seen, stuck_after_s, now, canary=kept)
        if new.suspect and not old.suspect:
            notes = (trying.suspect(facts, backend, stuck_after_s),)
    else:
        progress_ = evidence.progress(facts, backend.name)
        new = judge.judge(old, health, progress_, stuck_after_s, now)
    reason = backend.reason if backend.wish.drained else new.why if new.sick_since else ""
    backend = backend.having(vitals=new).because(reason)
    if new.sick_since is None or old.sick_since is not None:
        return backend, notes
    name = EventName.STUCK if judge.is_stuck(new) else EventName.UNHEALTHY
    text = f"{backend.name}: takes no new work: {new.why}"
    return backend, (*notes, facts.open(name, Severity.ERROR, text, trouble(backend.name)))


def _draining(facts: Facts, backend: BackendState) -> Step:
    if backend.deadline is None:
        return _drained_on(facts, backend)
    held, spare = remember(facts, backend)
    in_time = facts.seen.now < backend.deadline
    backend = backend.having(run=backend.run.holding(held, spare))
    busy = evidence.busy(facts, backend.name, backend.since)
    if (busy and in_time) or reclaim.spared(facts, backend):
        return Step(backend)
    if backend.after is After.SLEEPING:
        return sleeping.fall(facts, backend)
    grace = grace_after_drain(facts, backend, busy=busy)
    return give_back(facts, backend, backend.after, backend.reason, grace_s=grace)


def _drained_on(facts: Facts, backend: BackendState) -> Step:
    """Drained by an operator, for as long as that is wanted."""
    if not runnable(facts, backend):
        return Step(stop(facts, backend, After.STOPPED, DrainCause.UNWANTED))
    if not backend.wish.drained:
        return Step(facts.enter(backend, Phase.READY, ""))
    wanted = facts.wanted(backend.name)
    return Step(*_vitals(facts, backend, wanted.stuck_after_s)) if wanted else Step(backend)


def _resting(facts: Facts, backend: BackendState) -> Step:
    if not runnable(facts, backend):
        return _put_away(facts, backend)
    there = facts.unit(backend.name).state is not UnitState.ABSENT
    due = facts.seen.now >= backend.history.not_before
    if there and backend.run.unkillable and not due:
        return Step(backend)
    if there:
        return give_back(facts, backend, After.BACKOFF, "left over from before", grace_s=0.0)
    if due or backend.run.unkillable:
        ended = backend.having(run=backend.run.ended())
        return Step(facts.enter(ended, Phase.WAITING, "waits for its turn"))
    return Step(backend)


# -- shared --------------------------------------------------------------------------------------
def _put_away(facts: Facts, backend: BackendState) -> Step:
    """Wanted no more while it does not run: its trouble is over."""
    rested = backend.having(history=backend.history.put_away())
    return Step(facts.enter(rested, Phase.STOPPED, "not wanted"))


def _leaves(facts: Facts, backend: BackendState) -> Step | None:
    """Its end: its own, or because the mode no longer names it or an operator wants it restarted."""
    ended = _ended(facts, backend)
    if ended is not None:
        return ended
    if not runnable(facts, backend):
        return Step(stop(facts, backend, After.STOPPED, DrainCause.UNWANTED))
    if backend.wish.restart:
        return Step(stop(facts, backend, After.WAITING, DrainCause.RESTART))
    return None


def _ended(facts: Facts, backend: BackendState) -> Step | None:
    """Main process gone, or the unit gone by a person's hand. Any exit nobody asked for is a
    failure, code 0 included: vLLM ends with 0 when its engine dies (vllm #48966).
    """
    unit = facts.unit(backend.name)
    if unit.state is UnitState.ABSENT and backend.run.invocation:
        text = f"{backend.name}: stopped by hand; it stays stopped until: arbiterctl resume {backend.name}"
        name = EventName.STOPPED_BY_OPERATOR
        said = facts.say(name, Severity.WARNING, text, backend.name)
        gone = give_back(
            facts, backend.stopped_by_hand(), After.STOPPED, "stopped by hand", grace_s=0.0
        )
        return gone.after((said,))
    if unit.state is not UnitState.EXITED:
        return None
    asleep = backend.after is After.SLEEPING
    if ending(backend) and not asleep:
        return give_back(facts, backend, backend.after, backend.reason, grace_s=0.0)
    return fail(facts, backend, f"main process ended unasked ({unit.exit})", None)
