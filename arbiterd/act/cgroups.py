"""Processes and CPU time of a cgroup, read from whichever hierarchy systemd tracks units in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


def _folder(cgroup: str) -> Path | None:
    if not cgroup:
        return None
    for root in _CGROUP_ROOTS:
        folder = Path(root + cgroup)
        if (folder / "cgroup.procs").exists():
            return folder
    return None


def pids_of(cgroup: str) -> tuple[int, ...]:
    """Every process of a cgroup and of those below it."""
    folder = _folder(cgroup)
    if folder is None:
        return ()
    out: list[int] = []
    for where, _, _ in os.walk(folder):
        with suppress(OSError):
            out += [int(pid) for pid in Path(where, "cgroup.procs").read_text().split()]
    return tuple(sorted(pid for pid in out if pid))


def cpu_s_of(cgroup: str) -> float:
    """CPU seconds of a v2 cgroup, 0 where the controller is not there."""
    folder = _folder(cgroup)
    if folder is None:
        return 0.0
    with suppress(OSError, ValueError):
        for line in (folder / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
    return 0.0
