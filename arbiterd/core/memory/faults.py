"""XIDs: whose they are, and what follows.

An application's XID restarts the one backend whose process it names. One that needs a reset or a
reboot stops starts on that card under one clear incident; what still runs there is left to run: it may
answer yet, and a restart loop on a broken card helps nobody (facts/engines.md, 6.6).
"""

from __future__ import annotations

from arbiterd.core.backend.failing import fail
from arbiterd.core.facts import Facts
from arbiterd.core.memory.device_state import WELL, DeviceState
from arbiterd.core.memory.gpus import XID
from arbiterd.core.memory.xids import XidClass, describe, xid_class
from arbiterd.core.notes import About, Notes, Say
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, XidEvent
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.reading import Known

_ALIVE = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


def judge_xids(facts: Facts) -> tuple[Facts, Notes]:
    """Act on the XIDs of this tick, and let a card go that has recovered."""
    notes: Notes = ()
    for event in facts.seen.xids:
        match xid_class(event.code):
            case XidClass.APP:
                facts, said = _app(facts, event)
            case XidClass.INFO:
                said = (_note(facts, event, "noted; nothing is done"),)
            case _:
                facts, said = _broken(facts, event)
        notes = (*notes, *said)
    for uuid, state in facts.devices.items():
        if state.fault.text:
            facts = facts.put_device(uuid, _recovered(facts, uuid, state))
    return facts, notes


def _app(facts: Facts, event: XidEvent) -> tuple[Facts, Notes]:
    name = _backend_of(facts, event)
    backend = facts.backends.get(name)
    if backend is None or backend.phase not in _ALIVE:
        # Our own kill of a working engine makes some of them; a stranger's is a stranger's.
        whose = f"pid {event.pid}" if event.pid else "nobody named"
        what = f"{whose}: not one of ours that runs; nothing is done"
        return facts, (_note(facts, event, what),)
    text = f"{describe(event.code)} of its process {event.pid}: its CUDA context is broken"
    failed = fail(facts, backend, text, Cause(CauseClass.CONTEXT_POISONED, event.detail, text))
    return facts.put(failed.backend), failed.notes


def _backend_of(facts: Facts, event: XidEvent) -> str:
    """The backend of the pid that the kernel's log names, "" for none."""
    if not event.pid:
        return ""
    for unit in facts.seen.units.values():
        if event.pid in unit.pids:
            return unit.backend
    for seen in facts.seen.devices.values():
        listed = seen.processes.value if isinstance(seen.processes, Known) else ()
        for process in listed:
            if process.pid == event.pid:
                return process.holder
    return ""


def _note(facts: Facts, event: XidEvent, what: str) -> Say:
    text = f"{_card(facts, event.uuid)}: {describe(event.code)}: {what}"
    return facts.say(EventName.XID, Severity.NOTICE, text, gpu=event.uuid, reason=event.detail)


def _broken(facts: Facts, event: XidEvent) -> tuple[Facts, Notes]:
    """One incident per card, whatever else it says afterwards."""
    uuid = _whole(facts, event.uuid)
    if not uuid:
        return facts, (_note(facts, event, "of a card that NVML does not list"),)
    known = facts.device(uuid).fault.text
    reboot = xid_class(event.code) is XidClass.HOST
    cure = "a reboot" if reboot else "a reset"
    fault = f"{describe(event.code)}: it needs {cure}; nothing is started on it"
    for one in _with_slices(facts, uuid):
        state = facts.device(one)
        facts = facts.put_device(one, state.having(fault=state.fault.broken(fault, event.code)))
    again = _note(facts, event, "the card is known to be broken")
    if known:
        return facts, (again,)
    todo = "reboot" if reboot else "nvidia-smi --gpu-reset, or reboot"
    text = f"{_card(facts, uuid)}: {fault}; what runs there is left to run; then: {todo}"
    said = facts.open(
        EventName.GPU_FAULT,
        Severity.CRITICAL,
        text,
        _about(uuid),
        pids=(event.pid,) if event.pid else (),
        evidence=((XID, str(event.code)), ("kernel", event.detail)),
        otherwise=again,
    )
    return facts, (said,)


def _about(uuid: str) -> About:
    return About((EventName.GPU_FAULT,), gpu=uuid)


def _recovered(facts: Facts, uuid: str, state: DeviceState) -> DeviceState:
    """The driver wants nothing any more, or an operator has said so by a resume."""
    seen = facts.seen.devices.get(uuid)
    if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
        return state
    if seen.recovery_action:
        return state.having(fault=state.fault.confirm())
    if not state.fault.seen and not state.fault.cleared:
        return state  # the field has not said anything yet: it is read each ten seconds
    return state.having(fault=WELL)


def over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """The card is well; one that is not listed is not known to be."""
    state = facts.devices.get(one.gpu)
    if XID not in dict(one.evidence) or state is None or state.fault.text:
        return None
    return EventName.RECOVERED, f"{_card(facts, one.gpu)} needs no reset any more"


def forgive(facts: Facts, name: str) -> Facts:
    """An operator resumes a backend: he has looked at its card."""
    placement = facts.placements.get(name)
    for uuid in placement.devices if placement else ():
        state = facts.devices.get(uuid)
        if state is not None and state.fault.text:
            facts = facts.put_device(uuid, state.having(fault=state.fault.forgive()))
    return facts


def _whole(facts: Facts, uuid: str) -> str:
    """The card of a slice, the card itself; "" when it is not listed."""
    seen = facts.seen.devices.get(uuid)
    return "" if seen is None else seen.device.parent_uuid or uuid


def _with_slices(facts: Facts, uuid: str) -> list[str]:
    return [u for u, s in facts.seen.devices.items() if uuid in (u, s.device.parent_uuid)]


def _card(facts: Facts, uuid: str) -> str:
    seen = facts.seen.devices.get(uuid)
    return f"GPU {seen.device.index}" if seen else uuid or "a GPU"
