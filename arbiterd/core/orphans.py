"""Leftover holders of ours: processes that NVML lists, that belong to a backend, and that no unit
holds any more. A vLLM EngineCore outlives a killed API server with all its memory (vllm #55510).
"""

from __future__ import annotations

from arbiterd.core.desk import Desk
from arbiterd.core.limits import ORPHAN_AFTER_S
from arbiterd.model.actions import KillProcesses
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuProcess, ProcessRef
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitState
from arbiterd.model.reading import Known

_OWNED_PHASES = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


def find_orphans(desk: Desk) -> tuple[dict[tuple[int, int], float], str]:
    """Kill leftovers that stay. Returns when each was first seen, and the kill in flight."""
    pending = desk.state.orphan_pending
    outcome = desk.outcome_of(pending)
    if outcome is not None:
        desk.note_outcome(outcome)
        pending = ""
    # The lists may still be those from before the kill: whoever is in them is watched anew.
    known = desk.state.orphans if outcome is None else {}
    seen: dict[tuple[int, int], float] = {}
    due: dict[str, list[ProcessRef]] = {}
    gpu_of: dict[str, str] = {}
    for uuid, device in desk.seen.devices.items():
        if not isinstance(device.processes, Known):
            continue
        for process in device.processes.value:
            if process.ref is None or not _leftover(desk, process):
                continue
            key = (process.ref.pid, process.ref.start_time)
            seen[key] = known.get(key, desk.seen.now)
            if desk.seen.now - seen[key] >= ORPHAN_AFTER_S:
                due.setdefault(process.holder, []).append(process.ref)
                gpu_of[process.holder] = uuid
    if due and not pending:
        name = min(due)
        pending = _kill(desk, name, gpu_of[name], tuple(dict.fromkeys(due[name])))
    return seen, pending


def _leftover(desk: Desk, process: GpuProcess) -> bool:
    backend = desk.backends.get(process.holder)
    if not process.holder:
        return False
    if backend is None:
        return True
    if backend.pending or backend.phase in _OWNED_PHASES:
        return False
    return desk.unit(process.holder).state is UnitState.ABSENT


def _kill(desk: Desk, name: str, gpu: str, refs: tuple[ProcessRef, ...]) -> str:
    pids = ", ".join(str(ref.pid) for ref in refs)
    reason = f"left over from {name}, holds memory without a unit"
    action = KillProcesses(desk.action_id("leftover", name), name, gpu, reason, refs)
    text = f"{name}: killing leftover pid {pids}: {reason}"
    incident = desk.open_incident(name, "", EventName.ORPHAN_KILLED)
    if incident is None:
        new = desk.raise_incident(
            EventName.ORPHAN_KILLED,
            Severity.WARNING,
            text,
            backend=name,
            gpu=gpu,
            pids=tuple(ref.pid for ref in refs),
        )
        desk.act(action, new)
        desk.close_incident(new, EventName.KILL, f"{name}: leftover pid {pids} told to go")
    else:
        desk.act(action, incident.id)
    return action.id
