"""Slow facts of the host, refreshed by a thread: engine versions, missing commands, taken ports."""

from __future__ import annotations

import glob
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from arbiterd import aside
from arbiterd.core.backend.nodes import CONTROL, UVM
from arbiterd.core.backend.planning import engine_grpc_port, engine_port
from arbiterd.errors import Flaw
from arbiterd.linux import container_ids, sandbox_host
from arbiterd.linux.ports import describe, holders, listening
from arbiterd.model.observation import HostFacts
from arbiterd.model.settings import BackendSettings, Settings
from arbiterd.sense.containers import Found, client_of, proxied_port
from arbiterd.sense.versions import PATH, Versions

EVERY_S = 10.0
TROUBLED_S = 1.0  # somebody waits for a port, a command or a device node
RESTLESS_S = 30.0  # after the end of an engine: its port may be somebody else's by now
COMMON = {CONTROL, UVM}
OwnerOf = Callable[[int], tuple[str, str] | None]


class HostFactsSource:
    """``refresh`` names what to look at; ``latest`` never waits. ``fresh``: looked at least once.
    ``units``: engines start in units of systemd's: programs are asked for their version in such, too, and
    device nodes matter to their sandbox.
    """

    def __init__(self, owner_of: OwnerOf, *, units: bool = False) -> None:
        self._holders = _Holders(owner_of)
        self._units = units
        self._versions = Versions(units=units)
        self._settings: Settings | None = None
        self._facts = HostFacts(looked=False)
        self._wake = threading.Event()
        self._closed = False
        self._running: frozenset[str] = frozenset()
        self._restless_until = 0.0
        self._thread: threading.Thread | None = None
        self.fresh = False

    def refresh(self, settings: Settings) -> None:
        """Look at these settings from now on, and at once."""
        self._settings = settings
        self.fresh = False
        self._wake.set()
        if self._thread is None:
            self._thread = aside.thread(self._run, name="host")
            self._thread.start()

    def latest(self, running: frozenset[str] | None = None) -> HostFacts:
        """The newest facts. ``running``: backends whose units run now; once one of them does not any more,
        the host is looked at at once and each second for RESTLESS_S. Seconds-old facts let an engine start
        again and again on a port that is taken, until its breaker opens.
        """
        if running is not None:
            if self._running - running:
                self._restless_until = time.monotonic() + RESTLESS_S
                self._wake.set()
            self._running = running
        return self._facts

    def close(self) -> None:
        """Let the thread end."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            settings = self._settings
            if settings is not None:
                with suppress(OSError, psutil.Error):
                    found = _look(settings, self._holders, self._versions)
                    self._facts = _with_nodes(found) if self._units else found
                if settings is self._settings:
                    self.fresh = True
            troubled = bool(self._facts.missing_commands or self._facts.taken_ports)
            troubled = troubled or self._versions.asking or _lacks_nodes(self._facts)
            troubled = troubled or time.monotonic() < self._restless_until
            self._wake.wait(TROUBLED_S if troubled else EVERY_S)


def _with_nodes(facts: HostFacts) -> HostFacts:
    return replace(facts, driver=sandbox_host.driver_here(), nodes=sandbox_host.gpu_nodes())


def _lacks_nodes(facts: HostFacts) -> bool:
    """Whether a start may wait for a node: looked at each second, then."""
    cards = len(glob.glob("/proc/driver/nvidia/gpus/*"))
    there = sum(1 for node in facts.nodes if node.removeprefix("/dev/nvidia").isdigit())
    return facts.driver and (there < max(1, cards) or not facts.nodes >= COMMON)


def look(settings: Settings, owner_of: OwnerOf, *, units: bool = False) -> HostFacts:
    """Facts of the active mode's backends, all looked at anew."""
    return _look(settings, _Holders(owner_of), Versions(units=units))


def _look(settings: Settings, holders: _Holders, known: Versions) -> HostFacts:
    backends = settings.active.backends
    versions = known.of(backends.values())
    clients = {name: client_of(one) for name, one in backends.items() if one.image}
    return HostFacts(
        versions=versions,
        containers={name: client.client for name, client in clients.items() if client.client},
        missing_commands={name: str(flaw) for name, flaw in missing(settings, clients).items()},
        taken_ports=holders.taken(settings),
        ram_free_bytes=psutil.virtual_memory().available,
    )


class _Holders:
    """Who listens on our ports. Whose a socket is takes a scan of every process's descriptors, so
    the answer is kept as long as the same sockets listen.
    """

    def __init__(self, owner_of: OwnerOf) -> None:
        self._owner_of = owner_of
        self._sockets: frozenset[tuple[int, str]] | None = None  # None: to be asked
        self._taken: dict[str, str] = {}

    def taken(self, settings: Settings) -> dict[str, str]:
        """Ports of ours on which somebody else listens."""
        wanted: dict[int, str] = {}
        for name, backend in settings.active.backends.items():
            for port in (engine_port(settings, backend), engine_grpc_port(settings, backend)):
                if port:
                    wanted[port] = name
        sockets = frozenset(one for one in listening() if one[0] in wanted)
        if sockets != self._sockets:
            folder = Path(settings.arbiter.runtime_dir) / "backends"
            self._taken, seen = self._ask(wanted, {port for port, _ in sockets}, folder)
            self._sockets = sockets if seen else None
        return self._taken

    def _ask(
        self, wanted: dict[int, str], heard: set[int], folder: Path
    ) -> tuple[dict[str, str], bool]:
        """Whose port is taken and by whom; whether every listener's process was seen."""
        out: dict[str, str] = {}
        found = holders(heard)
        for port, pid in found:
            if port not in heard:
                continue
            heard.discard(port)
            if pid and self._owner_of(pid) is not None:
                continue
            if pid and proxied_port(pid) == port and container_ids.any_alive(folder, wanted[port]):
                continue  # docker's forwarder of our own container
            out.setdefault(wanted[port], f"port {port} is taken by {describe(pid)}")
        return out, all(pid for _, pid in found)


def missing(settings: Settings, clients: Mapping[str, Found] | None = None) -> dict[str, Flaw]:
    """By backend, what of its command is not there. ``clients``: of images, as far as known."""
    found = {
        name: _missing(one, (clients or {}).get(name) or (client_of(one) if one.image else None))
        for name, one in settings.active.backends.items()
    }
    return {name: flaw for name, flaw in found.items() if flaw}


def _missing(backend: BackendSettings, client: Found | None) -> Flaw | None:
    if client is not None:
        return client.problem
    if not backend.command:
        return None
    program = backend.command[0]
    if shutil.which(program, path=PATH):
        return None
    try:
        if "/" in program and os.stat(program):
            return Flaw(f"{program} is not executable", f"chmod +x {program}")
    except PermissionError:  # a home of mode 0700: the daemon is root without capabilities
        wrong = f"the arbiter may not enter a folder above {program}"
        return Flaw(wrong, "arbiterctl doctor names it")
    except OSError:
        pass
    right = f"install it or write its full path in backends.{backend.name}.command"
    return Flaw(f"{program} is not there", right)
