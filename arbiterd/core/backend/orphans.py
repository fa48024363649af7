"""Leftover holders of ours: processes that NVML lists, that belong to a backend, and that no unit
holds any more. A vLLM EngineCore outlives a killed API server with all its memory (vllm #55510).
"""

from __future__ import annotations

from arbiterd.core.facts import Facts
from arbiterd.core.limits import ORPHAN_AFTER_S
from arbiterd.core.notes import About, Close, Heard, Notes, Order
from arbiterd.model.actions import KillProcesses
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuProcess, ProcessRef
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitState
from arbiterd.model.reading import Known

_OWNED_PHASES = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


def find_orphans(facts: Facts) -> tuple[Facts, Notes]:
    """Kill leftovers that stay; remember when each was first seen, and the kill in flight."""
    notes: Notes = ()
    pending = facts.state.orphan_pending
    outcome = facts.outcome_of(pending)
    if outcome is not None:
        pending, notes = "", (Heard(outcome),)
    # The lists may still be those from before the kill: whoever is in them is watched anew.
    known = facts.state.orphans if outcome is None else {}
    seen: dict[tuple[int, int], float] = {}
    due: dict[str, list[ProcessRef]] = {}
    gpu_of: dict[str, str] = {}
    for uuid, device in facts.seen.devices.items():
        if not isinstance(device.processes, Known):
            continue
        for process in device.processes.value:
            if process.ref is None or not _leftover(facts, process):
                continue
            key = (process.ref.pid, process.ref.start_time)
            seen[key] = known.get(key, facts.seen.now)
            if facts.seen.now - seen[key] >= ORPHAN_AFTER_S:
                due.setdefault(process.holder, []).append(process.ref)
                gpu_of[process.holder] = uuid
    if due and not pending:
        name = min(due)
        pending = facts.action_id("leftover", name)
        refs = tuple(dict.fromkeys(due[name]))
        notes = (*notes, *_kill(facts, pending, name, gpu_of[name], refs))
    if (seen, pending) == (facts.state.orphans, facts.state.orphan_pending):
        return facts, notes
    return facts.having(orphans=seen, orphan_pending=pending), notes


def _leftover(facts: Facts, process: GpuProcess) -> bool:
    backend = facts.backends.get(process.holder)
    if not process.holder:
        return False
    if backend is None:
        return True
    if backend.pending or backend.phase in _OWNED_PHASES:
        return False
    return facts.unit(process.holder).state is UnitState.ABSENT


def _kill(facts: Facts, id_: str, name: str, gpu: str, refs: tuple[ProcessRef, ...]) -> Notes:
    """One incident per leftover, from its end to its end."""
    pids = ", ".join(str(ref.pid) for ref in refs)
    reason = f"left over from {name}, holds memory without a unit"
    event, about = EventName.ORPHAN_KILLED, About((EventName.ORPHAN_KILLED,), name)
    text = f"{name}: killing leftover pid {pids}: {reason}"
    return (
        facts.open(
            event, Severity.WARNING, text, about, gpu=gpu, pids=tuple(ref.pid for ref in refs)
        ),
        Order(KillProcesses(id_, name, gpu, reason, refs), about),
        Close(about, EventName.KILL, f"{name}: leftover pid {pids} told to go"),
    )
