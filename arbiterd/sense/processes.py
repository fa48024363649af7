"""Who holds GPU memory: NVML's pids made into processes of ours, of strangers, or ghosts.

NVML names pids of the host's namespace and may name dead ones; identity is pid + start time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from arbiterd.linux import procfs
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

    ``before``: what this returned last. A process that has just ended is listed a little longer than
    it can be asked whose it is: until it is gone from the list it stays whose it was.
    """
    known = _known(before or {})
    named: dict[int, GpuProcess] = {}
    out: dict[str, DeviceObservation] = {}
    for uuid, seen in snapshot.devices.items():
        if not isinstance(seen.processes, Known):
            out[uuid] = seen
            continue
        processes = []
        for process in seen.processes.value:
            if process.pid not in named:
                named[process.pid] = _identify(process, owner_of, known.get(process.pid))
            processes.append(replace(named[process.pid], used_bytes=process.used_bytes))
        out[uuid] = replace(seen, processes=Known(tuple(processes), seen.processes.at))
    return out


def _known(before: Mapping[str, DeviceObservation]) -> dict[int, GpuProcess]:
    """Processes of ours as last seen, by pid."""
    return {
        process.pid: process
        for seen in before.values()
        if isinstance(seen.processes, Known)
        for process in seen.processes.value
        if process.holder
    }


def _identify(process: GpuProcess, owner_of: OwnerOf, last: GpuProcess | None) -> GpuProcess:
    pid = process.pid
    ref = procfs.ref(pid)
    owner = owner_of(pid)
    if owner is not None:
        backend, unit = owner
        return replace(process, ref=ref, holder=backend, unit=unit, command=procfs.command(pid))
    if last is not None and ref in (None, last.ref):  # ended, reaped or not
        return replace(process, ref=ref, holder=last.holder, unit=last.unit, command=last.command)
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
