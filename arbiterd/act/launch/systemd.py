"""Backends as transient units, gpu-arbiter-backend-NAME.service in gpu-arbiter.slice.

They are no children of the daemon: they survive its crash, its restart and its upgrade. What the
properties are for is beside each of them; every trap was met on systemd 252 (docs/facts/systemd.md).
"""

from __future__ import annotations

import pwd
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from arbiterd.act.launch.base import (
    forget_record,
    home_of,
    put_files,
    resolve_command,
    signal_exactly,
    write_record,
)
from arbiterd.act.launch.containers import Containers, with_secrets
from arbiterd.act.launch.containers import exit_of as container_exit_of
from arbiterd.act.launch.device_nodes import make
from arbiterd.act.launch.efforts import Efforts
from arbiterd.act.launch.freezer import PREFIX, SUFFIX, Freezer, thaw, thaw_all
from arbiterd.act.launch.output import journal_tail
from arbiterd.act.launch.records import read_record
from arbiterd.act.launch.systemd_stop import UnitEnd
from arbiterd.act.launch.systemd_unit import Record, Unit, exit_of, properties, state_of, why_failed
from arbiterd.aside import aside
from arbiterd.errors import LaunchError
from arbiterd.files.placing import make_folder
from arbiterd.files.trust import only_root_writes
from arbiterd.linux import procfs
from arbiterd.linux.cgroups import cpu_s_of, frozen_of, oom_kills_of, pids_of
from arbiterd.linux.systemd_bus import SERVICE, UNIT, Bus, BusError, Signals
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import LaunchSpec, UnitObservation

DEFAULT_USER = "gpu-engines"
_PATH_PREFIX = "/org/freedesktop/systemd1/unit/gpu_2darbiter_2dbackend_2d"
_START_S = 30.0
_DIE_S = 15.0
_POLL_S = 0.02
_REFRESH_S = 5.0  # a net under lost signals


class SystemdLauncher:
    """Starts engines through systemd. ``on_change`` is called from the signal thread."""

    name: Literal["systemd"] = "systemd"

    def __init__(self, runtime_dir: Path, on_change: Callable[[], None]) -> None:
        self._dir = runtime_dir / "backends"
        make_folder(self._dir)
        self._on_change = on_change
        self._containers = Containers(self._dir, podman=False)
        self._lock = threading.Lock()
        self._units: dict[str, Unit] = {}
        self._records: dict[str, Record] = {}
        self._jobs: OrderedDict[str, str] = OrderedDict()
        self._job_done = threading.Condition()
        self.problems: list[str] = []
        self._bus = Bus()
        self._end = UnitEnd(self._bus, self._containers)
        self._watch_bus = Bus()
        self._refreshed_at = 0.0
        self._freezer = Freezer()
        self._efforts = Efforts()
        self.watch = self._efforts.watch
        self._oomed: dict[str, str] = {}  # backend: invocation of which a process was OOM-killed
        self._signals = Signals(self._on_signal, self._refresh_all)

    # -- signals -------------------------------------------------------------------------------
    def _on_signal(self, path: str, member: str, body: tuple[Any, ...]) -> None:
        if member == "JobRemoved":
            with self._job_done:
                self._jobs[str(body[1])] = str(body[3])
                while len(self._jobs) > 256:
                    self._jobs.popitem(last=False)
                self._job_done.notify_all()
            if str(body[2]).startswith(PREFIX):
                self._refresh(str(body[2]))
        elif member in ("UnitNew", "UnitRemoved"):
            if str(body[0]).startswith(PREFIX):
                self._refresh(str(body[0]))
        elif member == "PropertiesChanged" and path.startswith(_PATH_PREFIX):
            self._refresh_path(path)

    def _refresh_all(self) -> None:
        """After (re)connecting, and now and then: signals may have been lost."""
        found = dict(self._watch_bus.list_units(f"{PREFIX}*{SUFFIX}"))
        with self._lock:
            known = {f"{PREFIX}{name}{SUFFIX}" for name in self._units}
        for unit in known | found.keys():
            self._refresh(unit)

    def _refresh_path(self, path: str) -> None:
        with suppress(LaunchError):
            self._refresh(str(self._watch_bus.get(path, UNIT, "Id")))

    def _refresh(self, unit: str) -> None:
        """Read one unit anew and wake the loop when it has changed."""
        name = unit.removeprefix(PREFIX).removesuffix(SUFFIX)
        try:
            read = self._read(name, unit)
        except BusError as error:
            if not error.no_such_unit:
                return
            read = None
        except LaunchError:
            return
        with self._lock:
            old = self._units.get(name)
            if read is None:
                self._units.pop(name, None)
            else:
                if old is not None and old.invocation == read.invocation:
                    read = replace(read, since=old.since, main=read.main or old.main)
                self._units[name] = read
        if old != read:
            self._on_change()

    def _read(self, name: str, unit: str) -> Unit | None:
        """Properties of a unit, None when it is not there or stopped for good."""
        bus = self._watch_bus
        path = bus.unit_path(unit)
        active = str(bus.get(path, UNIT, "ActiveState"))
        while True:
            if active == "inactive":
                return None
            read = self._read_once(name, path, active)
            # One property a call: start over when the unit moved on meanwhile.
            active = str(bus.get(path, UNIT, "ActiveState"))
            if active == read.active:
                return read

    def _read_once(self, name: str, path: str, active: str) -> Unit:
        bus = self._watch_bus
        main_pid = int(bus.get(path, SERVICE, "MainPID"))
        return Unit(
            backend=name,
            path=path,
            active=active,
            sub=str(bus.get(path, UNIT, "SubState")),
            invocation=bytes(bus.get(path, UNIT, "InvocationID")).hex(),
            main_pid=main_pid,
            exec_pid=int(bus.get(path, SERVICE, "ExecMainPID")),
            exec_code=int(bus.get(path, SERVICE, "ExecMainCode")),
            exec_status=int(bus.get(path, SERVICE, "ExecMainStatus")),
            cgroup=str(bus.get(path, SERVICE, "ControlGroup")),
            since=time.monotonic(),
            main=procfs.ref(main_pid) if main_pid else None,
            result=str(bus.get(path, SERVICE, "Result")),
        )

    # -- adoption and observation --------------------------------------------------------------
    def adopt(self) -> None:
        """Every loaded unit of ours, by name; records tell what it was started with. Thawed first:
        who froze it is gone.
        """
        self.problems += thaw_all()
        for path in sorted(self._dir.glob("*.json")):
            record = read_record(Record, path, self.problems)
            if record is not None:
                self._records[record.backend] = record
        with suppress(LaunchError):
            self._refresh_all()
        for name in set(self._records) - self._units.keys():
            self._forget(name)

    def observe(self, now: float) -> dict[str, UnitObservation]:
        """From what the signals told; /proc and the cgroup are read here."""
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            aside(self._refresh_quietly, name="units")
        with self._lock:
            units = dict(self._units)
        out = {name: self._observe_one(unit, now) for name, unit in units.items()}
        return out | self._containers.unattended(out.keys(), now)

    def _refresh_quietly(self) -> None:
        with suppress(LaunchError):
            self._refresh_all()

    def _observe_one(self, unit: Unit, now: float) -> UnitObservation:
        record = self._records.get(unit.backend)
        mine = record if record and record.invocation == unit.invocation else None
        containers = self._containers
        pids = sorted({*pids_of(unit.cgroup), *containers.pids(unit.backend)})
        ended = exit_of(unit)
        stats = [found for pid in pids if (found := procfs.stat(pid)) and found.alive]
        io_bytes, resident = self._efforts.usage(unit.backend, (one.pid for one in stats), now)
        return UnitObservation(
            backend=unit.backend,
            state=state_of(unit),
            since=unit.since,
            main=unit.main,
            pids=tuple(one.pid for one in stats),
            invocation=unit.invocation,
            intent=mine.intent if mine else "",
            exit=container_exit_of(ended) if mine and mine.container else ended,
            cpu_s=self._cpu_s(unit) or sum(one.cpu_s for one in stats),
            log_bytes=self._efforts.last_entry(unit.backend, unit.invocation, now),
            io_bytes=io_bytes,
            memory_bytes=resident,
            started_wall=mine.started_wall if mine else 0.0,
            frozen=frozen_of(unit.cgroup),
            host_oom=self._host_oom(unit),
        )

    def _host_oom(self, unit: Unit) -> bool:
        """By systemd's word, or the kernel's count; remembered, as the count goes with the cgroup."""
        if unit.result == "oom-kill" or oom_kills_of(unit.cgroup):
            self._oomed[unit.backend] = unit.invocation
        return self._oomed.get(unit.backend) == unit.invocation

    def _cpu_s(self, unit: Unit) -> float:
        """Podman's container lies within the unit's cgroup, docker's beside it."""
        own, inner = cpu_s_of(unit.cgroup), self._containers.cgroup(unit.backend)
        return own if inner.startswith(f"{unit.cgroup}/") else own + cpu_s_of(inner)

    def cgroups(self, backend: str) -> tuple[str, ...]:
        """The unit's, and docker's beside it."""
        with self._lock:
            unit = self._units.get(backend)
        own, inner = unit.cgroup if unit else "", self._containers.cgroup(backend)
        if own and inner.startswith(f"{own}/"):
            inner = ""
        return tuple(path for path in (own, inner) if path)

    def owner_of(self, pid: int) -> tuple[str, str] | None:
        """By cgroup: whatever an engine forks stays in its unit, or in its container."""
        unit = procfs.unit_of(pid)
        if unit.startswith(PREFIX) and unit.endswith(SUFFIX):
            return unit.removeprefix(PREFIX).removesuffix(SUFFIX), unit
        backend = self._containers.owner_of(pid)
        return (backend, f"{PREFIX}{backend}{SUFFIX}") if backend else None

    # -- starting ------------------------------------------------------------------------------
    def start(self, spec: LaunchSpec) -> None:
        """StartTransientUnit, wait for its job; Type=exec makes a missing program a failed job."""
        user = spec.user or DEFAULT_USER
        try:
            pwd.getpwnam(user)
        except KeyError:
            msg = (
                f"cannot start {spec.backend}: there is no user {user!r}; make install creates "
                f"{DEFAULT_USER}, or write user = another one"
            )
            raise LaunchError(msg) from None
        program = resolve_command(spec.argv)
        if spec.container is not None and not only_root_writes(program):
            msg = (
                f"cannot start {spec.backend}: {program} would run as root, and other users can "
                f"change it; ls -ld {program} {Path(program).parent}"
            )
            raise LaunchError(msg)
        unit = f"{PREFIX}{spec.backend}{SUFFIX}"
        if spec.container is not None and self._end.active(unit):
            msg = f"cannot start {spec.backend}: it is there already"
            raise LaunchError(msg)
        spec = with_secrets(spec, systemd=True)
        self._containers.prepare(spec)
        env = put_files(self._dir, spec)
        wanted = properties(spec, program, user, home_of(user), env)
        try:
            job = self._bus.start_transient(unit, wanted)
        except BusError as error:
            msg = f"cannot start {spec.backend}: systemd says: {error}"
            raise LaunchError(msg) from None
        result = self._wait_job(job)
        if result != "done":
            why = self._why_failed(unit)
            self._bus.reset_failed(unit)
            msg = f"cannot start {spec.argv[0]}: {why or f'the start job ended with {result!r}'}"
            raise LaunchError(msg)
        self._remember(spec, unit)

    def _why_failed(self, unit: str) -> str:
        with suppress(LaunchError):
            path = self._bus.unit_path(unit)
            return why_failed(int(self._bus.get(path, SERVICE, "ExecMainStatus")))
        return ""

    def _wait_job(self, job: str) -> str:
        with self._job_done:
            self._job_done.wait_for(lambda: job in self._jobs, timeout=_START_S)
            return self._jobs.pop(job, "timeout")

    def _remember(self, spec: LaunchSpec, unit: str) -> None:
        self._refresh(unit)
        with self._lock:
            found = self._units.get(spec.backend)
        record = Record(
            spec.backend,
            found.main.pid if found and found.main else 0,
            found.main.start_time if found and found.main else 0,
            found.invocation if found else "",
            spec.intent,
            time.time(),
            spec.container.client if spec.container else "",
        )
        self._records[spec.backend] = record
        write_record(self._dir / f"{spec.backend}.json", asdict(record))
        self._on_change()

    def stop(self, backend: str, grace_s: float) -> None:
        """StopUnit (TERM to main, later KILL to all by KillMode=mixed); KILL to all after grace. A
        container client hands the TERM on; where it is gone, docker is asked to stop the container.
        """
        with self._freezer.ending(backend):
            self._stop(backend, grace_s)

    def _stop(self, backend: str, grace_s: float) -> None:
        unit = f"{PREFIX}{backend}{SUFFIX}"
        attended = self._end.active(unit)
        try:
            if grace_s <= 0:
                self._containers.kill(backend)
                self._end.kill_all(unit)
            self._bus.stop(unit)
        except BusError as error:
            if not error.no_such_unit:
                msg = f"cannot stop {backend}: systemd says: {error}"
                raise LaunchError(msg) from None
        deadline = time.monotonic() + max(0.0, grace_s)
        if grace_s > 0 and not attended:
            self._containers.stop(backend, grace_s)
        while self._end.alive(unit, backend) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        deadline = time.monotonic() + _DIE_S
        while self._end.alive(unit, backend):
            if not self._end.tidying(unit, backend):
                self._containers.kill(backend)
                self._end.kill_all(unit)
            if time.monotonic() >= deadline:
                left = {*self._members(backend), *self._containers.pids(backend)}
                pids = ", ".join(str(pid) for pid in sorted(left))
                msg = f"cannot stop {backend}: pid {pids} survives SIGKILL (state D?)"
                raise LaunchError(msg)
            time.sleep(_POLL_S)
        self._bus.reset_failed(unit)
        record = self._records.get(backend)
        client = record.container if record else ""
        self._containers.remove(backend, client, attended=attended)
        self._forget(backend)
        self._refresh(unit)

    def _members(self, backend: str) -> tuple[int, ...]:
        with self._lock:
            unit = self._units.get(backend)
        return pids_of(unit.cgroup) if unit else ()

    def _forget(self, backend: str) -> None:
        self._records.pop(backend, None)
        forget_record(self._dir / f"{backend}.json")
        forget_record(self._dir / f"{backend}.env")

    @property
    def can_freeze(self) -> bool:
        """systemd 246 or newer on a unified cgroup hierarchy."""
        return self._freezer.supported

    def freeze(self, backend: str, for_s: float) -> None:
        """FreezeUnit, after a timer that thaws is armed."""
        self._freezer.freeze(backend, for_s)

    def thaw(self, backend: str) -> None:
        """ThawUnit."""
        thaw(f"{PREFIX}{backend}{SUFFIX}")

    def make_nodes(self, nodes: Sequence[str]) -> None:
        """A transient unit runs nvidia-modprobe: the daemon has no right to make a node."""
        make(self._bus, self._wait_job, nodes)

    def kill_processes(self, refs: Sequence[ProcessRef]) -> None:
        """SIGKILL by identity, through a pidfd: between check and signal no pid can change hands."""
        for ref in refs:
            signal_exactly(ref, signal.SIGKILL)

    # -- output --------------------------------------------------------------------------------
    def tail(self, backend: str, lines: int) -> tuple[str, ...]:
        """The last lines of this invocation from the journal."""
        with self._lock:
            unit = self._units.get(backend)
        if unit is None:
            return ()
        return journal_tail(f"{PREFIX}{backend}{SUFFIX}", unit.invocation, lines)

    def close(self) -> None:
        """Stop watching; engines go on."""
        self._signals.close()
        self._bus.close()
        self._watch_bus.close()
