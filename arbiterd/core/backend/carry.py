"""What must survive a restart of the daemon: the action in flight, who rests and why, who sleeps, what
the ladder has done. Kept in runtime_dir, so it never outlives a boot, and monotonic times stay true.
"""

from __future__ import annotations

from arbiterd.core.backend import judge, sleeping
from arbiterd.core.backend.backend_state import BackendState, ending
from arbiterd.core.backend.failing import give_back
from arbiterd.core.facts import Facts, Step
from arbiterd.core.memory import brakes, pressure, reclaim
from arbiterd.core.memory.device_state import UNSEEN, DeviceState
from arbiterd.core.state import Carry, State
from arbiterd.model.backend import Phase
from arbiterd.model.launch import UnitState


def pack(state: State) -> Carry:
    """What is kept. Equal from tick to tick while nothing of it changes."""
    return Carry(
        {name: one.handed_over() for name, one in state.backends.items()},
        {uuid: _device(one) for uuid, one in state.devices.items()},
        state.switch,
        state.last,
        state.times,
    )


def _device(one: DeviceState) -> DeviceState:
    ladder = pressure.kept(one).ladder.brake(brakes.handed_over(one.ladder.braked)).hold_loads("")
    ladder = ladder.goes_on(reclaim.handed_over(ladder.reclaim))
    return one.having(sampled=UNSEEN.sampled, ladder=ladder)


def devices_of(carry: Carry, now: float) -> dict[str, DeviceState]:
    """Device states to go on with."""
    return {
        uuid: one.having(ladder=one.ladder.goes_on(reclaim.taken_over(one.ladder.reclaim, now)))
        for uuid, one in carry.devices.items()
    }


def _remembered(old: BackendState, fresh: BackendState, *, rests: bool = False) -> BackendState:
    """A fresh state with the past of the old one. ``rests``: until the time that the old one knew."""
    history = old.history if rests else old.history.waits(0.0)
    run = old.run.taken_over(intent=rests, held=rests)
    return fresh.having(wish=old.wish, run=run, history=history, warm=old.warm)


def go_on(facts: Facts, old: BackendState, state: UnitState) -> tuple[Step, bool]:
    """Carry on what the earlier daemon had begun with this backend; False: nothing was under way."""
    fresh = facts.backends[old.name]
    match old.phase:
        case Phase.STOPPING:
            return _stopping(facts, old, _remembered(old, fresh, rests=True), state), True
        case Phase.DRAINING if ending(old) and state is UnitState.RUNNING:
            goes_on = _remembered(old, fresh).goes_on(old)
            goes_on = goes_on.having(
                vitals=judge.fresh(facts.seen.now)
            )  # ready again at once, maybe
            return Step(facts.enter(goes_on, Phase.DRAINING, old.reason)), True
        case Phase.SLEEPING if state is UnitState.RUNNING and _same(facts, old):
            return Step(_sleeping(facts, old, _remembered(old, fresh))), True
        case Phase.BACKOFF | Phase.FAILED if state is UnitState.ABSENT:
            rests = _remembered(old, fresh, rests=True)
            return Step(facts.enter(rests, old.phase, old.reason)), True
        case _:
            return Step(_remembered(old, fresh)), False


def _same(facts: Facts, old: BackendState) -> bool:
    return facts.unit(old.name).invocation == old.run.invocation


def _stopping(facts: Facts, old: BackendState, backend: BackendState, state: UnitState) -> Step:
    if state is not UnitState.ABSENT:
        return give_back(facts, backend, old.after, old.reason, grace_s=0.0)
    gone = old.run.gone_at if old.run.gone_at is not None else facts.seen.now
    return Step(facts.enter(backend.await_bytes(old.after, gone), Phase.STOPPING, old.reason))


def _sleeping(facts: Facts, old: BackendState, backend: BackendState) -> BackendState:
    now = facts.seen.now
    sleep = sleeping.taken_over(old.sleep, now)
    asleep = backend.having(run=old.run.asleep(now), sleep=sleep)
    return facts.enter(asleep, Phase.SLEEPING, old.reason)
