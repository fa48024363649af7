"""What doctor looks at beside the survey: tools, users, folders, memory holders. Reads only."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from arbiterd.files.trust import own_environ, tool
from arbiterd.linux import procfs
from arbiterd.model.devices import GpuProcess
from arbiterd.model.events import EventName
from arbiterd.model.reading import Known
from arbiterd.report.catalogue import message_id
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sense.processes import attribute
from arbiterd.survey.facts import UnitFacts

HAPROXY = "/usr/sbin/haproxy"
NEEDRESTART = "/etc/needrestart"
GROUPS = ("gpu-arbiter", "gpu-arbiter-gw")
GATE_USER = "gpu-arbiter-gate"
_PREFIX = "gpu-arbiter-backend-"
_WAIT_S = 4.0
_TOOL_S = 10.0


@dataclass(frozen=True, slots=True)
class Space:
    """Free room where this folder is or will be. ``mount``: the file system's own folder."""

    path: str
    what: str
    free_bytes: int
    mount: str


@dataclass(frozen=True, slots=True)
class Holder:
    """Memory on a GPU that is none of ours."""

    gpu: int
    process: GpuProcess
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Checkup:
    """Facts of the host. ``haproxy``: (2, 6, 12), () for a version that cannot be read, None for no
    HAProxy. ``persistence``: GPUs by index, on or off. ``listed``: the process lists were read.
    """

    haproxy: tuple[int, ...] | None = (2, 6)
    persistence: tuple[tuple[int, bool], ...] = ()
    persistenced: bool = False
    holders: tuple[Holder, ...] = ()
    needrestart: bool = False
    needrestart_knows: bool = True
    catalogue: bool = True
    daemon: UnitFacts = field(default_factory=lambda: UnitFacts("gpu-arbiter.service"))
    systemd: bool = True
    missing_names: tuple[str, ...] = ()
    spaces: tuple[Space, ...] = ()


def checkup(daemon: UnitFacts, folders: Mapping[str, str], *, persistenced: bool) -> Checkup:
    """Look at everything once. ``folders``: path -> what it is for, for the free space."""
    return Checkup(
        haproxy=haproxy_version(),
        persistence=_persistence(),
        persistenced=persistenced,
        holders=_holders(),
        needrestart=os.path.isdir(NEEDRESTART),
        needrestart_knows=_needrestart_knows(),
        catalogue=_catalogue(),
        daemon=daemon,
        systemd=os.path.isdir("/run/systemd/system"),
        missing_names=tuple(_missing_names()),
        spaces=tuple(_space(path, what) for path, what in folders.items()),
    )


def haproxy_version() -> tuple[int, ...] | None:
    """By its own -v; None when it is not installed."""
    if not os.access(HAPROXY, os.X_OK):
        return None
    found = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", _said(HAPROXY, "-v"))
    return tuple(int(part) for part in found.groups() if part) if found else ()


def _said(*argv: str) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_TOOL_S, check=False, env=own_environ()
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _persistence() -> tuple[tuple[int, bool], ...]:
    text = _said(sys.executable, "-I", "-m", "arbiterd.survey.persistence_worker")
    try:
        return tuple((int(index), bool(on)) for index, on in json.loads(text or "[]"))
    except (ValueError, TypeError):
        return ()


def _needrestart_knows() -> bool:
    """Whether any of its files names our units: an upgrade of a library must restart no engine."""
    paths = [Path(NEEDRESTART, "needrestart.conf"), *Path(NEEDRESTART, "conf.d").glob("*.conf")]
    for path in paths:
        with suppress(OSError, UnicodeDecodeError):
            if "gpu-arbiter" in path.read_text():
                return True
    return False


def _catalogue() -> bool:
    """Whether journalctl -x can explain our entries."""
    journalctl = tool("journalctl")
    if journalctl is None:
        return True
    wanted = message_id(EventName.READY)
    return wanted in _said(journalctl, "--no-pager", "--list-catalog", wanted)


def _missing_names() -> list[str]:
    out = []
    for group in GROUPS:
        try:
            grp.getgrnam(group)
        except KeyError:
            out.append(f"group {group}")
    try:
        pwd.getpwnam(GATE_USER)
    except KeyError:
        out.append(f"user {GATE_USER}")
    return out


def _space(path: str, what: str) -> Space:
    """Of the nearest folder above that is there already."""
    there = path
    while not os.path.exists(there) and there != "/":  # False also where we may not look
        there = os.path.dirname(there)
    mount = os.path.realpath(there)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return Space(path, what, shutil.disk_usage(there).free, mount)


def _holders() -> tuple[Holder, ...]:
    """Foreign memory on every GPU, by process. Empty when NVML does not answer."""
    source = NvmlSource()
    source.start()
    try:
        deadline = time.monotonic() + _WAIT_S
        while True:
            now = time.monotonic()
            source.request(now, processes=True)
            snapshot = source.latest(now)
            read = snapshot.devices and all(
                isinstance(one.processes, Known) for one in snapshot.devices.values()
            )
            if read or snapshot.nvml or now >= deadline:
                break
            time.sleep(0.02)
    finally:
        source.close()
    out = []
    for seen in attribute(snapshot, owner_of).values():
        if not isinstance(seen.processes, Known):
            continue
        for process in seen.processes.value:
            used = process.used_bytes
            if not process.holder and isinstance(used, Known):
                out.append(Holder(seen.device.index, process, used.value))
    return tuple(out)


def owner_of(pid: int) -> tuple[str, str] | None:
    """An engine of ours: by its unit, or by the direct launcher's tag."""
    unit = procfs.unit_of(pid)
    tag = procfs.environ(pid).get("GPU_ARBITER_BACKEND", "")
    name = unit.removeprefix(_PREFIX).removesuffix(".service") if unit.startswith(_PREFIX) else ""
    return (tag or name, unit) if tag or name else None
