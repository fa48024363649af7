"""Whose a process is, under the direct launcher: by its container, its tag, its session, its ancestors.

An engine's child that has taken a session and an environment of its own and whose parent has ended is
still a descendant of the engine's warden, which inherits it as child subreaper (act/launch/warden.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from arbiterd.act.launch.containers import Containers
from arbiterd.act.launch.wardens import descendants
from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef

TAG_BACKEND = "GPU_ARBITER_BACKEND"
TAG_INSTANCE = "GPU_ARBITER_INSTANCE"
_SETTLED_TICKS = 5 * procfs.CLOCK_TICKS  # past its exec for certain


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the processes of one backend hang: its main process and its warden (pid 0: none)."""

    main: ProcessRef
    warden: ProcessRef


class Kin:
    """One launcher's; ``instance`` tells its processes from another daemon's."""

    def __init__(self, instance: str, containers: Containers) -> None:
        self._instance = instance
        self._containers = containers
        self._tagged: dict[ProcessRef, str] = {}

    def scan(self, roots: Mapping[str, Roots]) -> dict[str, list[ProcessRef]]:
        """Every living process of ours, by backend; wardens are not among them."""
        stats = [found for pid in procfs.pids() if (found := procfs.stat(pid)) and found.alive]
        wardens = {one.warden.pid: name for name, one in roots.items() if procfs.alive(one.warden)}
        below = descendants(stats, wardens)
        tagged: dict[ProcessRef, str] = {}
        out: dict[str, list[ProcessRef]] = {}
        settled = time.clock_gettime(time.CLOCK_BOOTTIME) * procfs.CLOCK_TICKS - _SETTLED_TICKS
        for one in stats:
            ref = ProcessRef(one.pid, one.start_time)
            backend = self._tagged.get(ref)
            if backend is None:
                backend = self._tag(one.pid)
            # A process between fork and exec still shows its parent's environment: ask it again.
            if backend or ref.start_time < settled:
                tagged[ref] = backend
            backend = below.get(ref) or backend
            if backend and one.pid != os.getpid() and one.pid not in wardens:
                out.setdefault(backend, []).append(ref)
        self._tagged = tagged
        for name in self._containers.known():
            inside = (procfs.ref(pid) for pid in self._containers.pids(name))
            members = out.setdefault(name, [])
            members += [ref for ref in inside if ref and ref not in members]
        return out

    def _tag(self, pid: int) -> str:
        env = procfs.environ(pid)
        return env.get(TAG_BACKEND, "") if env.get(TAG_INSTANCE) == self._instance else ""

    def owner_of(self, pid: int, roots: Mapping[str, Roots]) -> tuple[str, str] | None:
        """(backend, what tells it) of a process of ours, None for a foreign one."""
        inside = self._containers.owner_of(pid)
        if inside:
            return inside, f"container of {inside}"
        seen: set[int] = set()
        current = pid
        while current > 1 and current not in seen:
            seen.add(current)
            tag = self._tag(current)
            if tag:
                return tag, f"session of {tag}"
            found = procfs.stat(current)
            if found is None:
                return None
            for name, one in roots.items():
                if one.main.pid in (current, found.session) or one.warden.pid == current:
                    return name, f"session of {name}"
            current = found.parent
        return None
