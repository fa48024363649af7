"""XIDs: whose they are, and what follows.

An application's XID restarts the one backend whose process it names. One that needs a reset or a
reboot stops starts on that card under one clear incident; what still runs there is left to run: it may
answer yet, and a restart loop on a broken card helps nobody (facts/engines.md, 6.6).
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.desk import Desk
from arbiterd.core.failing import fail
from arbiterd.core.state import DeviceState
from arbiterd.core.xids import XidClass, describe, xid_class
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, XidEvent
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known

_ALIVE = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


def judge_xids(desk: Desk) -> None:
    """Act on the XIDs of this tick, and let a card go that has recovered."""
    for event in desk.seen.xids:
        match xid_class(event.code):
            case XidClass.APP:
                _app(desk, event)
            case XidClass.INFO:
                _note(desk, event, "noted; nothing is done")
            case _:
                _broken(desk, event)
    for uuid, state in desk.devices.items():
        if state.fault:
            _recovered(desk, uuid, state)


def _app(desk: Desk, event: XidEvent) -> None:
    name = _backend_of(desk, event)
    backend = desk.backends.get(name)
    if backend is None or backend.phase not in _ALIVE:
        # Our own kill of a working engine makes some of them; a stranger's is a stranger's.
        whose = f"pid {event.pid}" if event.pid else "nobody named"
        _note(desk, event, f"{whose}: not one of ours that runs; nothing is done")
        return
    text = f"{describe(event.code)} of its process {event.pid}: its CUDA context is broken"
    fail(desk, backend, text, Cause(CauseClass.CONTEXT_POISONED, event.detail, text))


def _backend_of(desk: Desk, event: XidEvent) -> str:
    """The backend of the pid that the kernel's log names, "" for none."""
    if not event.pid:
        return ""
    for unit in desk.seen.units.values():
        if event.pid in unit.pids:
            return unit.backend
    for seen in desk.seen.devices.values():
        listed = seen.processes.value if isinstance(seen.processes, Known) else ()
        for process in listed:
            if process.pid == event.pid:
                return process.holder
    return ""


def _note(desk: Desk, event: XidEvent, what: str) -> None:
    text = f"{_card(desk, event.uuid)}: {describe(event.code)}: {what}"
    desk.tell(EventName.XID, Severity.NOTICE, text, gpu=event.uuid, reason=event.detail)


def _broken(desk: Desk, event: XidEvent) -> None:
    """One incident per card, whatever else it says afterwards."""
    uuid = _whole(desk, event.uuid)
    if not uuid:
        _note(desk, event, "of a card that NVML does not list")
        return
    state = desk.devices.get(uuid, DeviceState())
    reboot = xid_class(event.code) is XidClass.HOST
    cure = "a reboot" if reboot else "a reset"
    fault = f"{describe(event.code)}: it needs {cure}; nothing is started on it"
    for one in _with_slices(desk, uuid):
        desk.devices[one] = replace(
            desk.devices.get(one, DeviceState()), fault=fault, fault_code=event.code
        )
    if state.fault or desk.open_incident("", uuid, EventName.GPU_FAULT):
        _note(desk, event, "the card is known to be broken")
        return
    todo = "reboot" if reboot else "nvidia-smi --gpu-reset, or reboot"
    text = f"{_card(desk, uuid)}: {fault}; what runs there is left to run; then: {todo}"
    pids = (event.pid,) if event.pid else ()
    evidence = (("xid", str(event.code)), ("kernel", event.detail))
    desk.raise_incident(
        EventName.GPU_FAULT, Severity.CRITICAL, text, gpu=uuid, pids=pids, evidence=evidence
    )


def _recovered(desk: Desk, uuid: str, state: DeviceState) -> None:
    """The driver wants nothing any more, or an operator has said so by a resume."""
    seen = desk.seen.devices.get(uuid)
    if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
        return
    wants = seen.recovery_action
    if wants:
        if not state.fault_seen:
            desk.devices[uuid] = replace(state, fault_seen=True)
        return
    if not state.fault_seen and not state.fault_cleared:
        return  # the field has not said anything yet: it is read each ten seconds
    desk.devices[uuid] = replace(
        state, fault="", fault_code=0, fault_seen=False, fault_cleared=False
    )
    incident = desk.open_incident("", uuid, EventName.GPU_FAULT)
    if incident is not None:
        text = f"{_card(desk, uuid)} needs no reset any more"
        desk.close_incident(incident.id, EventName.RECOVERED, text)


def forgive(desk: Desk, name: str) -> None:
    """An operator resumes a backend: he has looked at its card."""
    placement = desk.placements.get(name)
    for uuid in placement.devices if placement else ():
        state = desk.devices.get(uuid)
        if state is not None and state.fault:
            desk.devices[uuid] = replace(state, fault_cleared=True)


def _whole(desk: Desk, uuid: str) -> str:
    """The card of a slice, the card itself; "" when it is not listed."""
    seen = desk.seen.devices.get(uuid)
    return "" if seen is None else seen.device.parent_uuid or uuid


def _with_slices(desk: Desk, uuid: str) -> list[str]:
    return [u for u, s in desk.seen.devices.items() if uuid in (u, s.device.parent_uuid)]


def _card(desk: Desk, uuid: str) -> str:
    seen = desk.seen.devices.get(uuid)
    return f"GPU {seen.device.index}" if seen else uuid or "a GPU"
