"""Devices: pressure bands, and the incidents of NVML itself (blind, hung, lost)."""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.core import pressure
from arbiterd.core.facts import Facts
from arbiterd.core.notes import About, Close, Note, Notes
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


def judge(facts: Facts, ledgers: Mapping[str, tuple[LedgerRow, ...]]) -> dict[str, DeviceState]:
    """New device states."""
    out: dict[str, DeviceState] = {}
    allow = facts.settings.foreign_allow_bytes
    now, wall = facts.seen.now, facts.seen.wall
    leaving = frozenset(b.name for b in facts.backends.values() if _leaves(b))
    for uuid, seen in facts.seen.devices.items():
        headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
        old, rows = facts.devices.get(uuid, DeviceState()), ledgers[uuid]
        out[uuid] = pressure.observe(seen, old, rows, headroom, allow, now, wall, leaving)
    return out


def _leaves(backend: BackendState) -> bool:
    """On its way out: drained before a stop, or being stopped."""
    draining = backend.phase is Phase.DRAINING and backend.deadline is not None
    return backend.phase is Phase.STOPPING or (draining and backend.after is not After.SLEEPING)


def troubles(facts: Facts) -> Notes:
    """Incidents of NVML itself: of devices that cannot be read, and of all of it."""
    notes = [note for seen in facts.seen.devices.values() if (note := _device(facts, seen))]
    return (*notes, *_nvml(facts))


def _nvml(facts: Facts) -> Notes:
    """NVML as a whole: missing, or not answering, with no device ever seen."""
    why, name = facts.seen.nvml, EventName.DRIVER_HUNG
    if not why:
        about = About((name,), gpu="")
        return (Close(about, EventName.DRIVER_BACK, "NVML answers again"),)
    if facts.seen.devices or facts.before.first_tick:
        return ()
    text = f"NVML does not answer: {why}; GPU backends wait, nothing is stopped"
    return (facts.open(name, Severity.ERROR, text, About((name,))),)


def _device(facts: Facts, seen: DeviceObservation) -> Note | None:
    about = About(_NAMES, gpu=seen.device.uuid)
    card = f"GPU {seen.device.index} ({seen.device.name})"
    if seen.state is GpuState.OK:
        return Close(about, EventName.DRIVER_BACK, f"{card} can be read again")
    if facts.before.first_tick:
        return None
    name, severity = _TROUBLE[seen.state]
    text = (
        f"{card} is {seen.state.value}: {seen.detail}; "
        "no starts and no loads there until it can be read, traffic goes on"
    )
    return facts.open(name, severity, text, about)
