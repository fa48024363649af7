"""Who holds GPU memory: NVML's pids made into processes of ours, of strangers, or ghosts.

NVML names pids of the host's namespace and may name dead ones; identity is pid + start time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from arbiterd import procfs
from arbiterd.model.devices import DeviceObservation, GpuProcess
from arbiterd.model.reading import Known
from arbiterd.sense.nvml import NvmlSnapshot

OwnerOf = Callable[[int], tuple[str, str] | None]


def attribute(
    snapshot: NvmlSnapshot,
    owner_of: OwnerOf,
    before: Mapping[str, DeviceObservation] | None = None,
) -> dict[str, DeviceObservation]:
    """Fill in holder, identity and names of every listed process.

    ``before``: the answer to the list before this one. A process may die between NVML's list and our
    look at /proc (we have just killed it): it stays whose it was, and is no stranger.
    """
    named: dict[int, GpuProcess] = {}
    past = _past(before or {})
    out: dict[str, DeviceObservation] = {}
    for uuid, seen in snapshot.devices.items():
        if not isinstance(seen.processes, Known):
            out[uuid] = seen
            continue
        processes = []
        for process in seen.processes.value:
            if process.pid not in named:
                found = _identify(process, owner_of)
                if found.ref is None and not found.holder and process.pid in past:
                    found = replace(past[process.pid], ref=None)
                named[process.pid] = found
            processes.append(replace(named[process.pid], used_bytes=process.used_bytes))
        out[uuid] = replace(seen, processes=Known(tuple(processes), seen.processes.at))
    return out


def _past(before: Mapping[str, DeviceObservation]) -> dict[int, GpuProcess]:
    return {
        process.pid: process
        for seen in before.values()
        if isinstance(seen.processes, Known)
        for process in seen.processes.value
    }


def _identify(process: GpuProcess, owner_of: OwnerOf) -> GpuProcess:
    pid = process.pid
    ref = procfs.ref(pid)
    owner = owner_of(pid)
    if owner is not None:
        backend, unit = owner
        return replace(process, ref=ref, holder=backend, unit=unit, command=procfs.command(pid))
    if ref is None:
        return process  # a ghost: never signalled, named by its pid only
    uid = procfs.uid(pid)
    return replace(
        process,
        ref=ref,
        unit=procfs.unit_of(pid),
        user="" if uid is None else procfs.user_name(uid),
        command=procfs.command(pid)[:200],
    )
