"""Containers of ours by their ids: which there are, where their cgroups lie, whose a process is.

The client writes a container's id into runtime_dir/backends/NAME.CLIENT.cid. Every cgroup that docker
or podman makes, with any driver and launcher, carries that id in its path (docs/facts/containers.md).
Reads only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arbiterd.files.owned import read_owned
from arbiterd.linux import procfs
from arbiterd.model.container import Client

_ID = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"(?P<backend>[A-Za-z0-9_-]+)\.(?P<client>docker|podman)\.cid")
_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


@dataclass(frozen=True, slots=True)
class Container:
    """One container that was started for a backend; it may be gone."""

    backend: str
    client: Client
    id: str


def recorded(folder: Path) -> dict[str, Container]:
    """By backend: what the id files of runtime_dir/backends name. A newer file wins."""
    found: list[tuple[int, Container]] = []
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = _FILE.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(OSError, UnicodeDecodeError):
                text = read_owned(Path(entry.path), 1024).decode().strip()
                if _ID.fullmatch(text):
                    client: Client = "podman" if match["client"] == "podman" else "docker"
                    made = Container(match["backend"], client, text)
                    found.append((entry.stat().st_mtime_ns, made))
    return {one.backend: one for _, one in sorted(found, key=lambda pair: pair[0])}


def owner_of(pid: int, containers: Iterable[Container]) -> str:
    """The backend in whose container this process lives, "" for none. By cgroup alone: docker runs
    its processes under its own daemon, where no ancestor and no environment names us.
    """
    path = procfs.cgroup(pid)
    return next((one.backend for one in containers if one.id in path), "")


def cgroup_of(container: Container) -> str:
    """The path of its cgroup as /proc/PID/cgroup writes it, "" when it has none (any more). Podman's
    conmon has one of its own beside it, which is not meant.

    Walks the cgroup tree (about 1 ms for 100 cgroups); callers remember the answer.
    """
    for root in _ROOTS:
        if not os.path.isfile(f"{root}/cgroup.procs"):
            continue
        for where, folders, _ in os.walk(root):
            for name in folders:
                if container.id in name and "conmon" not in name:
                    return os.path.join(where, name)[len(root) :]
    return ""


def any_alive(folder: Path, backend: str = "") -> bool:
    """Whether a container of ours (of this backend) has a living process."""
    known: Mapping[str, Container] = recorded(folder)
    wanted = [one for one in known.values() if backend in ("", one.backend)]
    return bool(wanted) and any(owner_of(pid, wanted) for pid in procfs.pids())
