"""A cgroup's processes, CPU time, freezer and OOM kills, in whichever hierarchy systemd tracks units."""

from __future__ import annotations

import os
from pathlib import Path

from arbiterd.linux import procfs

_CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


def folder_of(cgroup: str) -> Path | None:
    """Where a cgroup is, None when it is not there (any more)."""
    if not cgroup:
        return None
    for root in _CGROUP_ROOTS:
        folder = Path(root + cgroup)
        if (folder / "cgroup.procs").exists():
            return folder
    return None


def pids_of(cgroup: str) -> tuple[int, ...]:
    """Every process of a cgroup and of those below it.

    Raises:
        OSError: no descriptor is left (procfs.SHORT): this empties no cgroup.

    """
    folder = folder_of(cgroup)
    if folder is None:
        return ()
    out: list[int] = []
    for where, _, _ in os.walk(folder, onerror=_unless_short):
        try:
            out += [int(pid) for pid in procfs.read(f"{where}/cgroup.procs").split()]
        except OSError as error:
            _unless_short(error)
    return tuple(sorted(pid for pid in out if pid))


def cpu_s_of(cgroup: str) -> float:
    """CPU seconds of a v2 cgroup, 0 where the controller is not there."""
    return _value(cgroup, "cpu.stat", "usage_usec") / 1e6


def frozen_of(cgroup: str) -> bool:
    """Whether every process of a v2 cgroup stands still."""
    return _value(cgroup, "cgroup.events", "frozen") == 1


def oom_kills_of(cgroup: str) -> int:
    """Processes of a v2 cgroup that the kernel's OOM killer has ended, those below it included; 0
    where the memory controller is not there.
    """
    return _value(cgroup, "memory.events", "oom_kill")


def _value(cgroup: str, file: str, key: str) -> int:
    """One number of a flat keyed file, 0 when it is not there."""
    folder = folder_of(cgroup)
    if folder is None:
        return 0
    try:
        for line in procfs.read(f"{folder}/{file}").decode().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except OSError as error:
        _unless_short(error)
    except ValueError:
        pass
    return 0


def _unless_short(error: OSError) -> None:
    """A cgroup that goes while it is read is no error; a lack of descriptors says nothing of it."""
    if error.errno in procfs.SHORT:
        raise error
