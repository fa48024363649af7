"""Backends without systemd: a warden and a session each, a tag in the environment, pidfds. For development.

Engines and their wardens outlive a SIGKILL of the daemon (own sessions, no parent-death signal) and are
adopted by the next start from the records in runtime_dir/backends/NAME.json, or by their wardens alone.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import select
import signal
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from arbiterd import aside
from arbiterd.act.launch.base import (
    BASE_PATH,
    resolve_command,
    secrets_of,
    signal_exactly,
    write_files,
    write_record,
)
from arbiterd.act.launch.containers import Containers, exit_of, with_secrets
from arbiterd.act.launch.direct_record import Record, Running
from arbiterd.act.launch.efforts import Efforts
from arbiterd.act.launch.output import files_tail
from arbiterd.act.launch.process_owner import TAG_BACKEND, TAG_INSTANCE, Kin, Roots
from arbiterd.act.launch.records import read_record
from arbiterd.act.launch.wardens import begin, exit_told, running
from arbiterd.errors import LaunchError
from arbiterd.files.placing import make_folder
from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import Exit, LaunchSpec, UnitObservation, UnitState

_DIE_S = 15.0  # after SIGKILL: only a process in the D state is still there then
_POLL_S = 0.02
_UNWATCHED = -2
_SCAN_EVERY_S = 1.0  # a scan of all tags costs 12 µs a process; members are remembered meanwhile


class DirectLauncher:
    """Starts engines as sessions of their own.

    ``on_change`` is called from the watcher thread as soon as a main process exits.
    """

    name: Literal["direct"] = "direct"

    def __init__(self, runtime_dir: Path, on_change: Callable[[], None]) -> None:
        self._dir = runtime_dir / "backends"
        self._logs = runtime_dir / "logs"
        for folder in (self._dir, self._logs):
            make_folder(folder)
        self.instance = hashlib.sha256(str(runtime_dir.resolve()).encode()).hexdigest()[:16]
        self._on_change = on_change
        self._containers = Containers(self._dir, podman=True)
        self._efforts = Efforts()
        self.watch = self._efforts.watch
        self._lock = threading.Lock()
        self._units: dict[str, Running] = {}
        self._kin = Kin(self.instance, self._containers)
        self._epoll = select.epoll()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_r, select.EPOLLIN)
        self._by_fd: dict[int, str] = {}
        self._closed = False
        self._watcher = aside.thread(self._watch, name="exits")
        self._watcher.start()
        self.problems: list[str] = []

    # -- adoption ------------------------------------------------------------------------------
    def adopt(self) -> None:
        """Take over what the records name, and leftovers that only their tag still names."""
        for path in sorted(self._dir.glob("*.json")):
            record = read_record(Record, path, self.problems)
            if record is None:
                continue
            main = ProcessRef(record.pid, record.start_time)
            unit = Running(record, time.monotonic(), None, -1)
            lives = record.boot_id == procfs.boot_id() and procfs.alive(main)
            if not lives:
                unit.exit = Exit()
            with self._lock:
                self._units[record.backend] = unit
            if lives:
                self._watch_pid(unit)
            elif not self._members(record.backend):
                self._forget(record.backend)
            else:
                unit.exit = exit_told(None, self._exit_file(record.backend), None)
        self._adopt_unrecorded()

    def _adopt_unrecorded(self) -> None:
        """Engines whose records are lost (runtime_dir was removed), by their wardens."""
        for found in running(self.instance):
            if found.backend in self._units:
                continue
            main = found.main or ProcessRef(0, 0)
            record = Record(
                found.backend,
                main.pid,
                main.start_time,
                procfs.boot_id(),
                found.invocation,
                found.intent,
                time.time(),
                warden_pid=found.warden.pid,
                warden_start=found.warden.start_time,
            )
            unit = Running(record, time.monotonic(), None, -1)
            with self._lock:
                self._units[found.backend] = unit
            if found.main is None:
                unit.exit = Exit()
            else:
                self._watch_pid(unit)
            self._write_record(record)

    # -- watching ------------------------------------------------------------------------------
    def _watch_pid(self, unit: Running) -> None:
        try:
            unit.pidfd = procfs.pidfd(unit.record.pid)
        except ProcessLookupError:
            self._ended(unit)
            return
        except OSError:  # no descriptor is left: tried again by each tick
            unit.pidfd = _UNWATCHED
            return
        with self._lock:
            self._by_fd[unit.pidfd] = unit.record.backend
        self._epoll.register(unit.pidfd, select.EPOLLIN)

    def _watch(self) -> None:
        while not self._closed:
            for fd, _ in self._epoll.poll():
                if fd == self._wake_r:
                    with suppress(BlockingIOError):
                        os.read(fd, 64)
                    continue
                self._epoll.unregister(fd)
                with self._lock:
                    backend = self._by_fd.pop(fd, "")
                    unit = self._units.get(backend)
                if unit is not None and unit.pidfd == fd:
                    self._ended(unit)
                os.close(fd)

    def _ended(self, unit: Running) -> None:
        """The main process is gone: keep its status, tell the loop."""
        record = unit.record
        status = exit_told(unit.process, self._exit_file(record.backend), record.roots.warden)
        if unit.record.container:
            status = exit_of(status) or status
        unit.scanned = 0.0
        unit.exit = status
        self._on_change()

    # -- observing -----------------------------------------------------------------------------
    def observe(self, now: float) -> dict[str, UnitObservation]:
        """All units, with their processes; a full scan of tags at most once a second."""
        with self._lock:
            units = dict(self._units)
        if any(now - unit.scanned >= _SCAN_EVERY_S for unit in units.values()):
            found = self._kin.scan(self._roots())
            for name, unit in units.items():
                unit.members, unit.scanned = tuple(found.get(name, ())), now
                if unit.process is not None:
                    unit.process.poll()  # a killed warden is no zombie as long as its engine lives
        out = {name: self._observe_one(unit, now) for name, unit in units.items()}
        return out | self._containers.unattended(out.keys(), now)

    def _observe_one(self, unit: Running, now: float) -> UnitObservation:
        record = unit.record
        main = ProcessRef(record.pid, record.start_time)
        if unit.pidfd == _UNWATCHED and unit.exit is None:
            (self._watch_pid if procfs.alive(main) else self._ended)(unit)
        # The main process is a member before its first scan, too: it may not have come to its exec.
        members = unit.members if main in unit.members else (main, *unit.members)
        stats = [(ref, procfs.stat(ref.pid)) for ref in members]
        alive = [s for ref, s in stats if s and s.alive and s.start_time == ref.start_time]
        state = UnitState.RUNNING
        if unit.exit is not None:
            state = UnitState.EXITED
        elif unit.stopping:
            state = UnitState.STOPPING
        log = self._logs / f"{record.backend}.log"
        io_bytes, resident = self._efforts.usage(record.backend, (s.pid for s in alive), now)
        return UnitObservation(
            backend=record.backend,
            state=state,
            since=unit.since,
            main=main,
            pids=tuple(s.pid for s in alive),
            invocation=record.invocation,
            intent=record.intent,
            exit=unit.exit,
            cpu_s=sum(s.cpu_s for s in alive),
            log_bytes=log.stat().st_size if log.exists() else 0,
            io_bytes=io_bytes,
            memory_bytes=resident,
            started_wall=record.started_wall,
        )

    def _roots(self) -> dict[str, Roots]:
        with self._lock:
            return {name: unit.record.roots for name, unit in self._units.items()}

    def _members(self, backend: str) -> list[ProcessRef]:
        return self._kin.scan(self._roots()).get(backend, [])

    def make_nodes(self, nodes: Sequence[str]) -> None:
        """Nothing: CUDA makes its nodes itself where no sandbox keeps it from it."""

    def owner_of(self, pid: int) -> tuple[str, str] | None:
        """By its container's cgroup or by tag, else by session leader and ancestors (an engine that
        cleaned its environment).
        """
        return self._kin.owner_of(pid, self._roots())

    def cgroups(self, backend: str) -> tuple[str, ...]:
        """Its container's; a plain command shares ours."""
        path = self._containers.cgroup(backend)
        return (path,) if path else ()

    # -- starting ------------------------------------------------------------------------------
    def start(self, spec: LaunchSpec) -> None:
        """Start in a session of its own, output to runtime_dir/logs/NAME.log."""
        with self._lock:
            if spec.backend in self._units:
                msg = f"cannot start {spec.backend}: it is there already"
                raise LaunchError(msg)
        spec = with_secrets(spec, systemd=False)
        self._containers.prepare(spec)
        env = self._environment(spec)
        program = resolve_command(spec.argv, env["PATH"])
        write_files(self._dir / spec.backend, spec.files)
        record = Record(
            spec.backend,
            0,
            0,
            procfs.boot_id(),
            uuid.uuid4().hex,
            spec.intent,
            time.time(),
            spec.container.client if spec.container else "",
        )
        self._exit_file(spec.backend).unlink(missing_ok=True)
        names = (self.instance, spec.backend, record.invocation, spec.intent)
        try:
            process, main = begin(
                names,
                {
                    "argv": [program, *spec.argv[1:]],
                    "env": env,
                    "cwd": env["HOME"],
                    "user": spec.user if os.geteuid() == 0 else "",
                    "log": str(self._logs / f"{spec.backend}.log"),
                    "exit": str(self._exit_file(spec.backend)),
                },
            )
        except (OSError, LaunchError) as error:
            msg = f"cannot start {spec.argv[0]}: {error}"
            raise LaunchError(msg) from None
        warden = procfs.stat(process.pid)
        record.pid, record.start_time = main.pid, main.start_time
        record.warden_pid, record.warden_start = process.pid, warden.start_time if warden else 0
        self._write_record(record)
        unit = Running(record, time.monotonic(), process, -1)
        with self._lock:
            self._units[spec.backend] = unit
        self._watch_pid(unit)

    def _exit_file(self, backend: str) -> Path:
        return self._dir / f"{backend}.exit"

    def _environment(self, spec: LaunchSpec) -> dict[str, str]:
        """Nothing of the daemon's own environment reaches an engine, its LD_LIBRARY_PATH least."""
        entry = pwd.getpwuid(os.geteuid())
        if spec.user and os.geteuid() == 0:
            try:
                entry = pwd.getpwnam(spec.user)
            except KeyError:
                msg = f"cannot start {spec.backend}: there is no user {spec.user!r}"
                raise LaunchError(msg) from None
        home = entry.pw_dir if Path(entry.pw_dir).is_dir() else "/"
        base = {"PATH": BASE_PATH, "HOME": home, "USER": entry.pw_name, "LANG": "C.UTF-8"}
        tags = {TAG_BACKEND: spec.backend, TAG_INSTANCE: self.instance}
        return {**base, **spec.base, **secrets_of(spec), **spec.env, **tags}

    def _write_record(self, record: Record) -> None:
        write_record(self._dir / f"{record.backend}.json", asdict(record))

    # -- stopping ------------------------------------------------------------------------------
    def stop(self, backend: str, grace_s: float) -> None:
        """TERM, grace, KILL to everything with the tag or in the session, until nothing is left."""
        with self._lock:
            unit = self._units.get(backend)
        attended = unit is not None and unit.exit is None
        if unit is not None and attended and grace_s > 0:
            unit.stopping = True
            main = ProcessRef(unit.record.pid, unit.record.start_time)
            signal_exactly(main, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while unit.exit is None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        elif grace_s > 0:
            self._containers.stop(backend, grace_s)
        self._containers.kill(backend)
        deadline = time.monotonic() + _DIE_S
        while True:
            left = self._members(backend)
            main_lives = unit is not None and unit.exit is None
            if not left and not main_lives:
                break
            for ref in left:
                signal_exactly(ref, signal.SIGKILL)
            if unit is not None and main_lives:
                signal_exactly(ProcessRef(unit.record.pid, unit.record.start_time), signal.SIGKILL)
            if time.monotonic() >= deadline:
                pids = ", ".join(str(ref.pid) for ref in left)
                msg = f"cannot stop {backend}: pid {pids} survives SIGKILL (state D?)"
                raise LaunchError(msg)
            time.sleep(_POLL_S)
        if unit is not None:
            self._dismiss(unit)
        client = unit.record.container if unit else ""
        self._containers.remove(backend, client, attended=attended)
        self._forget(backend)

    def _dismiss(self, unit: Running) -> None:
        """Its warden has nothing left to do and ends by itself; one that does not is killed."""
        warden = unit.record.roots.warden
        deadline = time.monotonic() + 1.0
        while procfs.alive(warden) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        signal_exactly(warden, signal.SIGKILL)
        if unit.process is not None:
            unit.process.wait()
            if unit.process.stdout is not None:
                unit.process.stdout.close()

    def _forget(self, backend: str) -> None:
        with self._lock:
            self._units.pop(backend, None)
        (self._dir / f"{backend}.json").unlink(missing_ok=True)
        self._exit_file(backend).unlink(missing_ok=True)

    @property
    def can_freeze(self) -> bool:
        """No cgroup of its own: freeze is not offered."""
        return False

    def freeze(self, backend: str, for_s: float) -> None:
        """Refused."""
        del for_s
        msg = f"cannot freeze {backend}: the direct launcher has no cgroup for it"
        raise LaunchError(msg)

    def thaw(self, backend: str) -> None:
        """Nothing is ever frozen."""

    def kill_processes(self, refs: Sequence[ProcessRef]) -> None:
        """SIGKILL by identity."""
        for ref in refs:
            signal_exactly(ref, signal.SIGKILL)

    # -- output --------------------------------------------------------------------------------
    def tail(self, backend: str, lines: int) -> tuple[str, ...]:
        """The end of its log file, and of the part before it."""
        log = self._logs / f"{backend}.log"
        return files_tail((log.with_suffix(".log.0"), log), lines)

    def close(self) -> None:
        """Stop watching; engines go on."""
        self._closed = True
        with suppress(OSError):
            os.write(self._wake_w, b"x")
        self._watcher.join(timeout=2.0)
        self._epoll.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
        with self._lock:
            for unit in self._units.values():
                if unit.process is not None:
                    unit.process.returncode = 0  # ours to leave: no ResourceWarning, no wait
                    if unit.process.stdout is not None:
                        unit.process.stdout.close()
            for fd in self._by_fd:
                os.close(fd)
