"""What must survive a restart of the daemon: the action in flight, who rests and why, who sleeps, what
the ladder has done. Kept in runtime_dir, so it never outlives a boot, and monotonic times stay true.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import judge
from arbiterd.core.backend_state import After, BackendState, Canaries, SleepStage, Vitals, ending
from arbiterd.core.device_state import DeviceState
from arbiterd.core.facts import Facts, Step
from arbiterd.core.failing import give_back
from arbiterd.core.pressure import kept
from arbiterd.core.state import Carry, State
from arbiterd.model.backend import Phase
from arbiterd.model.launch import UnitState

_MOVING = (Phase.STOPPING, Phase.SLEEPING)


def pack(state: State) -> Carry:
    """What is kept. Equal from tick to tick while nothing of it changes."""
    return Carry(
        {name: _backend(one) for name, one in state.backends.items()},
        {uuid: _device(one) for uuid, one in state.devices.items()},
        state.switch,
        state.last,
        state.times,
    )


def _backend(one: BackendState) -> BackendState:
    held = one.held_bytes if one.phase in _MOVING else {}
    spare = one.spare_then if one.phase in _MOVING else {}
    deadline = one.deadline if one.phase is Phase.DRAINING else None
    return BackendState(
        name=one.name,
        phase=one.phase,
        since=one.since,
        since_wall=one.since_wall,
        reason=one.reason if one.phase is not Phase.READY else "",
        after=one.after,
        drain=one.drain,
        held=one.held,
        parked=one.parked,
        restart_asked=one.restart_asked,
        invocation=one.invocation,
        intent=one.intent,
        deadline=deadline,
        not_before=one.not_before,
        failures=one.failures,
        failed_count=one.failed_count,
        attempt=one.attempt,
        restarts=one.restarts,
        ready_at=one.ready_at,
        start_took_s=one.start_took_s,
        stop_took_s=one.stop_took_s,
        started_cap=one.started_cap,
        cause=one.cause,
        held_bytes=held,
        spare_then=spare,
        gone_at=one.gone_at,
        warm_done=one.warm_done,
        warm_away_until=one.warm_away_until,
        client_load_at=one.client_load_at,
        sleep=one.sleep,
        canaries=one.canaries if one.canaries.done else Canaries(),
        ooms=one.ooms,
    )


def _device(one: DeviceState) -> DeviceState:
    braked = {name: replace(brake, hold="", freezing="") for name, brake in one.braked.items()}
    reclaim = replace(one.reclaim, action="", stage="taken over") if one.reclaim else None
    return replace(kept(one), last_sample_at=-1.0, braked=braked, reclaim=reclaim, loads_held="")


def devices_of(carry: Carry, now: float) -> dict[str, DeviceState]:
    """Device states to go on with; an unload that was asked for counts as heard."""
    out = {}
    for uuid, one in carry.devices.items():
        reclaim = one.reclaim
        if reclaim is not None and reclaim.told is None:
            reclaim = replace(reclaim, told=now)
        out[uuid] = replace(one, reclaim=reclaim)
    return out


def remembered(old: BackendState, fresh: BackendState) -> BackendState:
    """A fresh state with the past of the old one."""
    return replace(
        fresh,
        held=old.held,
        parked=old.parked,
        restart_asked=old.restart_asked,
        failures=old.failures,
        failed_count=old.failed_count,
        attempt=old.attempt,
        restarts=old.restarts,
        start_took_s=old.start_took_s,
        stop_took_s=old.stop_took_s,
        started_cap=old.started_cap,
        cause=old.cause,
        ooms=old.ooms,
        warm_done=old.warm_done,
        warm_away_until=old.warm_away_until,
        client_load_at=old.client_load_at,
    )


def go_on(facts: Facts, old: BackendState, state: UnitState) -> tuple[Step, bool]:
    """Carry on what the earlier daemon had begun with this backend; False: nothing was under way."""
    backend = remembered(old, facts.backends[old.name])
    match old.phase:
        case Phase.STOPPING:
            return _stopping(facts, old, backend, state), True
        case Phase.DRAINING if ending(old) and state is UnitState.RUNNING:
            changed = replace(
                backend,
                invocation=old.invocation,
                intent=old.intent,
                after=old.after,
                drain=old.drain,
                deadline=old.deadline,
                sleep=old.sleep,
                ready_at=old.ready_at,
                vitals=judge.fresh(facts.seen.now),  # it may be ready again at once
            )
            return Step(facts.enter(changed, Phase.DRAINING, old.reason)), True
        case Phase.SLEEPING if state is UnitState.RUNNING and _same(facts, old):
            return Step(_sleeping(facts, old, backend)), True
        case Phase.BACKOFF | Phase.FAILED if state is UnitState.ABSENT:
            changed = replace(backend, not_before=old.not_before, intent=old.intent)
            return Step(facts.enter(changed, old.phase, old.reason)), True
        case _:
            return Step(backend), False


def _same(facts: Facts, old: BackendState) -> bool:
    return facts.unit(old.name).invocation == old.invocation


def _stopping(facts: Facts, old: BackendState, backend: BackendState, state: UnitState) -> Step:
    changed = replace(
        backend,
        held_bytes=old.held_bytes,
        spare_then=old.spare_then,
        not_before=old.not_before,
        intent=old.intent,
    )
    if state is not UnitState.ABSENT:
        return give_back(facts, changed, old.after, old.reason, grace_s=0.0)
    gone = old.gone_at if old.gone_at is not None else facts.seen.now
    changed = replace(changed, after=old.after, gone_at=gone)
    return Step(facts.enter(changed, Phase.STOPPING, old.reason))


def _sleeping(facts: Facts, old: BackendState, backend: BackendState) -> BackendState:
    """A wake that was under way is asked for again: waking what is awake does no harm. Whether a sleep
    that was under way has worked, its bytes tell.
    """
    sleep, now = old.sleep, facts.seen.now
    if sleep.stage in (SleepStage.WAKING, SleepStage.CHECKING):
        sleep = replace(sleep, stage=SleepStage.ASLEEP, wake=True)
    elif sleep.stage is SleepStage.FALLING:
        sleep = replace(sleep, at=now)
    changed = replace(
        backend,
        invocation=old.invocation,
        intent=old.intent,
        held_bytes=old.held_bytes,
        sleep=sleep,
        vitals=Vitals(),
        after=After.STOPPED,
        ready_at=now,
    )
    return facts.enter(changed, Phase.SLEEPING, old.reason)
