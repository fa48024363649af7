"""Time that the daemon did not see: it was stopped, starved of CPU, or the machine was suspended.

Nothing that was due in it has been missed by anybody: answers, ends and bytes may have come while nobody
looked. So deadlines move on by as much, and what has lasted does not count that time (as in progress.py).
"""

from __future__ import annotations

from arbiterd.core.backend import judge, trying
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.memory import pressure, reclaim
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.core.mode import switch
from arbiterd.core.state import State
from arbiterd.core.traffic import loads


def excused(state: State, seconds: float) -> State:
    """The state as if the last ``seconds`` had not passed, for all that would be held against somebody."""
    if seconds <= 0:
        return state
    switch_, bad = state.switch, state.gateway_bad_since
    return state.having(
        backends={name: _backend(one, seconds) for name, one in state.backends.items()},
        devices={uuid: _device(one, seconds) for uuid, one in state.devices.items()},
        leases={key: loads.excused(one, seconds) for key, one in state.leases.items()},
        orphans={key: at + seconds for key, at in state.orphans.items()},
        gateway_bad_since=bad and bad + seconds,
        switch=switch_ and switch.excused(switch_, seconds),
    )


def _backend(one: BackendState, seconds: float) -> BackendState:
    vitals = judge.excused(one.vitals, seconds)
    return one.later(seconds).having(vitals=vitals, canaries=trying.excused(one.canaries, seconds))


def _device(one: DeviceState, seconds: float) -> DeviceState:
    ladder = one.ladder.goes_on(reclaim.excused(one.ladder.reclaim, seconds))
    return one.having(sampled=pressure.excused(one.sampled, seconds), ladder=ladder)
