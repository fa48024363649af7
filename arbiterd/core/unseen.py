"""Time that the daemon did not see: it was stopped, starved of CPU, or the machine was suspended.

Nothing that was due in it has been missed by anybody: answers, ends and bytes may have come while nobody
looked. So deadlines move on by as much, and what has lasted does not count that time (as in progress.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arbiterd.core.backend_state import BackendState
from arbiterd.core.device_state import DeviceState
from arbiterd.core.state import State

# Moments after which somebody is stopped, or since when something bad lasts; None or 0: there is none.
_BACKEND = ("deadline", "hard_deadline", "gone_at")
_VITALS = ("sick_since", "unanswered_since", "door_since", "work_at", "proof_at", "canary_asked_at")
_DEVICE = ("band_since", "foreign_calm_at")
_RECLAIM = ("deadline", "told")


def excused(state: State, seconds: float) -> State:
    """The state as if the last ``seconds`` had not passed, for all that would be held against somebody."""
    if seconds <= 0:
        return state
    switch = state.switch
    return replace(
        state,
        backends={name: _backend(one, seconds) for name, one in state.backends.items()},
        devices={uuid: _device(one, seconds) for uuid, one in state.devices.items()},
        leases={k: replace(one, expires=one.expires + seconds) for k, one in state.leases.items()},
        orphans={key: at + seconds for key, at in state.orphans.items()},
        gateway_bad_since=_later(state.gateway_bad_since, seconds),
        switch=switch and replace(switch, deadline=switch.deadline + seconds),
    )


def _backend(one: BackendState, seconds: float) -> BackendState:
    return replace(
        one,
        **_moved(one, _BACKEND, seconds),
        vitals=replace(one.vitals, **_moved(one.vitals, _VITALS, seconds)),
        canaries=replace(one.canaries, **_moved(one.canaries, ("asked_at",), seconds)),
    )


def _device(one: DeviceState, seconds: float) -> DeviceState:
    reclaim = one.reclaim
    return replace(
        one,
        **_moved(one, _DEVICE, seconds),
        over_since={name: at + seconds for name, at in one.over_since.items()},
        reclaim=reclaim and replace(reclaim, **_moved(reclaim, _RECLAIM, seconds)),
    )


def _moved(one: object, names: tuple[str, ...], seconds: float) -> Mapping[str, Any]:
    return {name: _later(getattr(one, name), seconds) for name in names}


def _later(at: float | None, seconds: float) -> float | None:
    return at + seconds if at else at
