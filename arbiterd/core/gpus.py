"""Devices: pressure bands, and the incidents of NVML itself (blind, hung, lost)."""

from __future__ import annotations

from arbiterd.core import ledger, pressure
from arbiterd.core.desk import Desk
from arbiterd.core.placement import headroom_bytes
from arbiterd.core.state import DeviceState
from arbiterd.model.backend import LedgerRow
from arbiterd.model.devices import DeviceObservation, GpuState, Pressure
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
    for uuid, seen in desk.seen.devices.items():
        headroom = headroom_bytes(desk.settings.arbiter.headroom_bytes, seen.device)
        left = ledger.solvency(ledgers[uuid], seen.device.capacity_bytes, allow)
        old = desk.state.devices.get(uuid, DeviceState())
        new = pressure.observe(seen, old, left, headroom, desk.seen.now)
        out[uuid] = new
        _trouble(desk, seen)
        _tell_band(desk, seen, old.pressure, new.pressure)
    _nvml(desk)
    return out


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


def _tell_band(desk: Desk, seen: DeviceObservation, old: Pressure, new: Pressure) -> None:
    rank = {Pressure.UNKNOWN: 0, Pressure.CALM: 0, Pressure.TIGHT: 1, Pressure.CRITICAL: 2}
    if rank[old] == rank[new] or Pressure.UNKNOWN in (old, new):
        return
    rise = rank[new] > rank[old]
    name = EventName.PRESSURE_RISE if rise else EventName.PRESSURE_CALM
    severity = Severity.WARNING if rise else Severity.NOTICE
    text = f"GPU {seen.device.index}: pressure {old.value} → {new.value}"
    desk.tell(name, severity, text, gpu=seen.device.uuid)
