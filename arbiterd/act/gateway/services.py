"""HAProxy and the load gate as services: systemd units, or children of our own (direct launcher).

Both outlive the daemon's crash: traffic must not depend on who decides about it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from arbiterd.act.launch.base import BASE_PATH, signal_exactly
from arbiterd.errors import LaunchError
from arbiterd.files import strict_json, unwritten
from arbiterd.files.owned import open_log, read_owned
from arbiterd.gateway.paths import Paths
from arbiterd.linux import procfs
from arbiterd.linux.systemd_bus import Bus, BusError
from arbiterd.model.devices import ProcessRef
from arbiterd.store import atomic

GATEWAY, GATE = "gateway", "gate"
_STOP_S = 10.0
_PROGRAM = "/usr/sbin/haproxy"


class Services(Protocol):
    """What the gateway's keeper needs."""

    def start(self, name: str) -> None:
        """Start it unless it runs.

        Raises:
            LaunchError: it cannot be started.

        """

    def reload(self, name: str) -> None:
        """New configuration; streams go on in the old worker."""

    def replace(self, name: str) -> None:
        """Kill it, all of its processes, and start it anew: it is hung.

        Raises:
            LaunchError: it cannot be started.

        """

    def stop(self, name: str) -> None:
        """Stop it, streams included."""

    def words(self, name: str) -> str:
        """Its last line of output, for people."""


class SystemdServices:
    """gpu-arbiter-gateway.service and gpu-arbiter-gate.service."""

    def __init__(self) -> None:
        self._bus = Bus()

    def start(self, name: str) -> None:
        """StartUnit: nothing happens when it is active."""
        self._call("StartUnit", name)

    def reload(self, name: str) -> None:
        """ReloadUnit: checked by haproxy -c first (the unit's ExecReload)."""
        self._call("ReloadOrRestartUnit", name)

    def replace(self, name: str) -> None:
        """SIGKILL: a stopped process heeds no other; Restart=always starts it, StartUnit makes sure."""
        unit = f"gpu-arbiter-{name}.service"
        try:
            self._bus.kill(unit, "all", signal.SIGKILL)
        except BusError as error:
            if not error.no_such_unit:
                msg = f"{unit}: systemd says: {error}"
                raise LaunchError(msg) from None
        self.start(name)

    def stop(self, name: str) -> None:
        """StopUnit."""
        with suppress(LaunchError):
            self._call("StopUnit", name)

    def words(self, name: str) -> str:
        """Left to the journal."""
        return f"journalctl -u gpu-arbiter-{name} has its words"

    def _call(self, method: str, name: str) -> None:
        unit = f"gpu-arbiter-{name}.service"
        try:
            self._bus.manage(method, unit)
        except BusError as error:
            msg = f"{unit}: systemd says: {error}"
            raise LaunchError(msg) from None


class DirectServices:
    """Children in sessions of their own, remembered in FILES/NAME.json or found by their command line."""

    def __init__(self, where: Paths) -> None:
        self._paths = where
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, ProcessRef] = {}
        self._logs = where.files.parent / "logs"

    def start(self, name: str) -> None:
        """Start unless the remembered process lives."""
        if self._recorded(name) is None and self._ref(name) is not None:
            self.stop(
                name
            )  # its folder was removed, and with it the sockets by which it is reached
        if self._alive(name):
            return
        self._reap(name)
        argv = self._argv(name)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        env = {"PATH": BASE_PATH, "LANG": "C.UTF-8", "HOME": str(Path.home())}
        with open_log(log) as output:
            try:
                child = subprocess.Popen(
                    argv,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                msg = f"{argv[0]}: {error.strerror}"
                if name == GATEWAY:
                    msg += "; apt-get install haproxy"
                raise LaunchError(msg) from None
        self._children[name] = child
        found = procfs.stat(child.pid)
        record = {"pid": child.pid, "start_time": found.start_time if found else 0}
        self._started[name] = ProcessRef(record["pid"], record["start_time"])
        with suppress(OSError):  # a full disk: written later
            atomic.write(self._record(name), json.dumps(record).encode())

    def _record(self, name: str) -> Path:
        return self._paths.files / f"{name}.pid.json"

    def _argv(self, name: str) -> list[str]:
        where = self._paths
        if name == GATE:
            return [sys.executable, "-I", "-m", "arbiterd.loadgate", str(where.gate_config)]
        return [_PROGRAM, "-W", "-S", f"{where.master},mode,600", "-f", str(where.config)]

    def reload(self, name: str) -> None:
        """SIGUSR2 to HAProxy's master. The gate reads its file by itself."""
        one = self._ref(name)
        if one is not None:
            signal_exactly(one, signal.SIGUSR2)

    def replace(self, name: str) -> None:
        """SIGKILL to its process group, which HAProxy's workers belong to."""
        one = self._ref(name)
        if one is not None:
            with suppress(OSError):
                os.killpg(one.pid, signal.SIGKILL)
            deadline = time.monotonic() + _STOP_S
            while self._alive(name) and time.monotonic() < deadline:
                time.sleep(0.02)
        self.start(name)

    def stop(self, name: str) -> None:
        """SIGTERM, SIGKILL later, wait."""
        one = self._ref(name)
        if one is not None:
            signal_exactly(one, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while self._alive(name) and time.monotonic() < deadline:
                time.sleep(0.02)
            if self._alive(name):
                signal_exactly(one, signal.SIGKILL)
        self._reap(name)
        self._started.pop(name, None)
        unwritten.written(self._record(name))
        with suppress(OSError):
            self._record(name).unlink(missing_ok=True)

    def words(self, name: str) -> str:
        """The last line of its log."""
        with suppress(OSError):
            lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
            alerts = [line for line in lines if "ALERT" in line] or lines
            return alerts[-1][:300] if alerts else ""
        return ""

    def _reap(self, name: str) -> None:
        """Forget a child that has ended. A main thread may be a zombie before its other threads have ended:
        then it looks dead, and cannot be reaped yet.
        """
        child = self._children.pop(name, None)
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_S)

    def _ref(self, name: str) -> ProcessRef | None:
        return self._recorded(name) or self._found(name)

    def _recorded(self, name: str) -> ProcessRef | None:
        """As started by us, or by an earlier daemon that could write it down."""
        one = self._started.get(name)
        if one is None:
            try:
                record = strict_json.loads(read_owned(self._record(name)))
                one = ProcessRef(int(record["pid"]), int(record["start_time"]))
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return one if procfs.alive(one) else None

    def _found(self, name: str) -> ProcessRef | None:
        """By its command line, which names a file of this runtime_dir; HAProxy's workers have the same
        as their master, and end with it.
        """
        mark = str(self._paths.gate_config if name == GATE else self._paths.config)
        program = self._argv(name)[0]
        words = ((pid, procfs.argv(pid)) for pid in procfs.pids())
        same = [pid for pid, argv in words if argv[:1] == [program] and mark in argv]
        masters = [pid for pid in same if (one := procfs.stat(pid)) and one.parent not in same]
        return procfs.ref(masters[0]) if masters else None

    def _alive(self, name: str) -> bool:
        there = self._ref(name) is not None
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            del self._children[name]
        return there
