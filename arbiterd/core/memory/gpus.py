"""Devices: pressure bands, and the incidents of NVML itself (blind, hung, lost)."""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.core.backend.backend_state import After, BackendState, ending
from arbiterd.core.facts import Facts
from arbiterd.core.incidents import dwell_s
from arbiterd.core.memory import lines, offenders, pressure
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.slope import gap_s
from arbiterd.core.notes import About, Open
from arbiterd.model.backend import LedgerRow, Phase
from arbiterd.model.devices import DeviceObservation, GpuState
from arbiterd.model.events import EventName, Incident, Severity

_TROUBLE = {
    GpuState.LOST: (EventName.GPU_LOST, Severity.CRITICAL),
    GpuState.FAULT: (EventName.GPU_FAULT, Severity.CRITICAL),
    GpuState.HUNG: (EventName.DRIVER_HUNG, Severity.ERROR),
    GpuState.UNKNOWN: (EventName.DRIVER_HUNG, Severity.ERROR),
}
XID = "xid"  # the row of evidence of an incident that an Xid has opened
_BROKEN = (GpuState.LOST, GpuState.FAULT)
NAMES = tuple(name for name, _ in _TROUBLE.values())


def judge(facts: Facts, ledgers: Mapping[str, tuple[LedgerRow, ...]]) -> dict[str, DeviceState]:
    """New device states."""
    out: dict[str, DeviceState] = {}
    allow = facts.settings.foreign_allow_bytes
    leaving = frozenset(b.name for b in facts.backends.values() if _leaves(b))
    gap = gap_s(facts.settings.arbiter.poll_s)
    for uuid, seen in facts.seen.devices.items():
        headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
        old, rows = facts.device(uuid), ledgers[uuid]
        new = pressure.observe(
            seen,
            old,
            rows,
            headroom,
            allow,
            facts.seen.now,
            leaving,
            gap,
            lines=lines.on(facts.backends, uuid),
            calm_s=dwell_s(facts.incidents, EventName.PRESSURE_RISE, uuid, facts.seen.wall),
        )
        out[uuid] = offenders.calmed(facts, uuid, new)
    return out


def _leaves(backend: BackendState) -> bool:
    """On its way out: drained before a stop, or being stopped."""
    return backend.phase is Phase.STOPPING or (
        ending(backend) and backend.after is not After.SLEEPING
    )


def broken(facts: Facts, name: str) -> str:
    """Why a backend can do no work on its cards, "" when it can: one is lost, or needs a reset. One that
    cannot be read may be well: traffic goes on.
    """
    placement = facts.placements.get(name)
    for uuid in placement.devices if placement else ():
        seen, state = facts.seen.devices.get(uuid), facts.device(uuid)
        if seen is not None and seen.state in _BROKEN:
            return f"GPU {seen.device.index} is {seen.state.value}"
        if state.fault.text:
            return f"its GPU needs a reset: {state.fault.text}"
    return ""


def wrong(facts: Facts) -> list[Open]:
    """NVML itself: devices that cannot be read, and all of it. A first tick has not seen any yet."""
    found: list[Open] = []
    if facts.before.first_tick:
        return found
    for uuid, seen in facts.seen.devices.items():
        if seen.state is not GpuState.OK:
            name, severity = _TROUBLE[seen.state]
            text = (
                f"{_card(seen)} is {seen.state.value}: {seen.detail}; no starts and no loads there until "
                f"it can be read, {'no requests either' if seen.state in _BROKEN else 'traffic goes on'}"
            )
            found.append(facts.open(name, severity, text, About(NAMES, gpu=uuid)))
    if facts.seen.nvml and not facts.seen.devices:
        name = EventName.DRIVER_HUNG
        text = f"NVML does not answer: {facts.seen.nvml}; GPU backends wait, nothing is stopped"
        found.append(facts.open(name, Severity.ERROR, text, About((name,))))
    return found


def over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """It can be read again; what an Xid says of it is core/memory/faults.py's."""
    if XID in dict(one.evidence):
        return None
    if not one.gpu:
        return None if facts.seen.nvml else (EventName.DRIVER_BACK, "NVML answers again")
    seen = facts.seen.devices.get(one.gpu)
    if seen is None or seen.state is not GpuState.OK:
        return None
    return EventName.DRIVER_BACK, f"{_card(seen)} can be read again"


def _card(seen: DeviceObservation) -> str:
    return f"GPU {seen.device.index} ({seen.device.name})"
