"""Devices: pressure bands, and the incidents of NVML itself (blind, hung, lost)."""

from __future__ import annotations

from arbiterd.core import pressure
from arbiterd.core.desk import Desk
from arbiterd.core.placement import headroom_bytes
from arbiterd.core.state import After, BackendState, DeviceState
from arbiterd.model.backend import LedgerRow, Phase
from arbiterd.model.devices import DeviceObservation, GpuState
from arbiterd.model.events import EventName, Severity

_TROUBLE = {
    GpuState.LOST: (EventName.GPU_LOST, Severity.CRITICAL),
    GpuState.FAULT: (EventName.GPU_FAULT, Severity.CRITICAL),
    GpuState.HUNG: (EventName.DRIVER_HUNG, Severity.ERROR),
    GpuState.UNKNOWN: (EventName.DRIVER_HUNG, Severity.ERROR),
}
_NAMES = tuple(name for name, _ in _TROUBLE.values())


def judge(desk: Desk, ledgers: dict[str, tuple[LedgerRow, ...]]) -> dict[str, DeviceState]:
    """New device states; opens and closes device incidents."""
    out: dict[str, DeviceState] = {}
    allow = desk.settings.foreign_allow_bytes
    now, wall = desk.seen.now, desk.seen.wall
    leaving = frozenset(b.name for b in desk.backends.values() if _leaves(b))
    for uuid, seen in desk.seen.devices.items():
        headroom = headroom_bytes(desk.settings.arbiter.headroom_bytes, seen.device)
        old = desk.devices.get(uuid, DeviceState())
        new = pressure.observe(seen, old, ledgers[uuid], headroom, allow, now, wall, leaving)
        out[uuid] = new
        _trouble(desk, seen)
    _nvml(desk)
    return out


def _leaves(backend: BackendState) -> bool:
    """On its way out: drained before a stop, or being stopped."""
    draining = backend.phase is Phase.DRAINING and backend.deadline is not None
    return backend.phase is Phase.STOPPING or (draining and backend.after is not After.SLEEPING)


def _nvml(desk: Desk) -> None:
    """NVML as a whole: missing, or not answering, with no device ever seen."""
    open_ = desk.open_incident("", "", EventName.DRIVER_HUNG)
    if desk.seen.nvml and not desk.seen.devices and open_ is None and not desk.state.first_tick:
        text = f"NVML does not answer: {desk.seen.nvml}; GPU backends wait, nothing is stopped"
        desk.raise_incident(EventName.DRIVER_HUNG, Severity.ERROR, text)
    elif not desk.seen.nvml and open_ is not None and not open_.gpu:
        desk.close_incident(open_.id, EventName.DRIVER_BACK, "NVML answers again")


def _trouble(desk: Desk, seen: DeviceObservation) -> None:
    uuid = seen.device.uuid
    open_ = desk.open_incident("", uuid, *_NAMES)
    if seen.state is GpuState.OK:
        if open_ is not None:
            text = f"GPU {seen.device.index} ({seen.device.name}) can be read again"
            desk.close_incident(open_.id, EventName.DRIVER_BACK, text)
        return
    if open_ is not None or desk.state.first_tick:
        return
    name, severity = _TROUBLE[seen.state]
    text = (
        f"GPU {seen.device.index} ({seen.device.name}) is {seen.state.value}: {seen.detail}; "
        "no starts and no loads there until it can be read, traffic goes on"
    )
    desk.raise_incident(name, severity, text, gpu=uuid)
