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
    """Fill in holder, identity and names of every listed process. ``before``: the last result. The
    driver lists the dead until their memory is free: whose they were, only the last look can tell.
    """
    known = _names(before or {})
    named: dict[int, GpuProcess] = {}
    out: dict[str, DeviceObservation] = {}
    for uuid, seen in snapshot.devices.items():
        if not isinstance(seen.processes, Known):
            out[uuid] = seen
            continue
        processes = []
        for process in seen.processes.value:
            if process.pid not in named:
                named[process.pid] = _identify(process, owner_of, known)
            processes.append(replace(named[process.pid], used_bytes=process.used_bytes))
        out[uuid] = replace(seen, processes=Known(tuple(processes), seen.processes.at))
    return out


def _names(before: Mapping[str, DeviceObservation]) -> dict[int, GpuProcess]:
    return {
        process.pid: process
        for seen in before.values()
        if isinstance(seen.processes, Known)
        for process in seen.processes.value
    }


def _identify(
    process: GpuProcess, owner_of: OwnerOf, known: Mapping[int, GpuProcess]
) -> GpuProcess:
    pid = process.pid
    ref = procfs.ref(pid)
    owner = owner_of(pid)
    if owner is not None:
        backend, unit = owner
        return replace(process, ref=ref, holder=backend, unit=unit, command=procfs.command(pid))
    if ref is None:  # a ghost: never signalled, named by what it was, else by its pid only
        was = known.get(pid)
        return process if was is None else replace(was, ref=None, used_bytes=process.used_bytes)
    uid = procfs.uid(pid)
    return replace(
        process,
        ref=ref,
        unit=procfs.unit_of(pid),
        user="" if uid is None else procfs.user_name(uid),
        command=procfs.command(pid)[:200],
    )
