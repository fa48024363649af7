"""Have the bytes of a stopped backend come back? Only then may anything else start there.

The proof is the ledger, not the drop of used bytes: what a dead process leaves behind for a while
shows as unattributed (nvml-facts: release lag), while a neighbour that grows meanwhile is
attributed to itself and must not look like a slow release.
"""

from __future__ import annotations

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import RELEASED_FRACTION
from arbiterd.core.memory.ledger import UNATTRIBUTED, used_of
from arbiterd.model.devices import GpuState
from arbiterd.model.reading import Known
from arbiterd.quantities import MIB

_SLACK_BYTES = 64 * MIB  # readings of memory and processes are up to one poll apart


def released(facts: Facts, backend: BackendState) -> bool:
    """Whether every device the backend held bytes on has them back, by samples newer than its end.

    A device that cannot be read keeps the answer at no; one that is lost has nothing to give back.
    """
    return all(_back(facts, backend, uuid) for uuid in backend.run.held)


def _back(facts: Facts, backend: BackendState, uuid: str) -> bool:
    device = facts.seen.devices.get(uuid)
    gone = backend.run.gone_at if backend.run.gone_at is not None else facts.seen.now
    if device is None or device.state is GpuState.LOST:
        return True
    memory, processes = device.memory, device.processes
    if not isinstance(memory, Known) or not isinstance(processes, Known):
        return False
    if memory.at <= gone or processes.at <= gone:
        return False
    if any(process.holder == backend.name for process in processes.value):
        return False
    spare = used_of(facts.ledgers[uuid], UNATTRIBUTED)
    if spare is None:
        return False
    slack = (1 - RELEASED_FRACTION) * backend.run.held[uuid] + _SLACK_BYTES
    return spare - backend.run.spare_then.get(uuid, 0) <= slack


def remember(facts: Facts, backend: BackendState) -> tuple[dict[str, int], dict[str, int]]:
    """(held bytes, unattributed bytes) per device, from the freshest list that is as new as the memory
    beside it; the old ones otherwise. A list from before a free or a take makes any rest of it, and
    with a wrong rest to compare with a release could never be proven.
    """
    held, spare = dict(backend.run.held), dict(backend.run.spare_then)
    placement = facts.placements.get(backend.name)
    for uuid in placement.devices if placement else ():
        device = facts.seen.devices.get(uuid)
        if device is None or not isinstance(device.processes, Known):
            continue
        if not isinstance(device.memory, Known) or device.processes.at < device.memory.at:
            continue
        ledger = facts.ledgers[uuid]
        mine, rest = used_of(ledger, backend.name), used_of(ledger, UNATTRIBUTED)
        if mine is not None and rest is not None:
            # Negative: memory is already lower than a list from before says; that is no baseline.
            held[uuid], spare[uuid] = mine, max(0, rest)
    return held, spare
