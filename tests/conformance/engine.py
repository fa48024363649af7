"""Engines that cases are played on: started once per environment, shared by the cases that need it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from arbiterd.linux import procfs
from tests.conformance.cases import Case
from tests.support import free_port, wait_until


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of the engine that a model lives in (Ollama's llama-server), as ``runners`` needs
    it: ``argv`` without the program's name, with masks for what differs from run to run.
    """

    pid: int
    model: str
    argv: tuple[str, ...]


class Engine(Protocol):
    """What an adapter knows of its engine.

    ``name``: as in the case files' names; ``real``: False for the stand-in; ``patience``: what the
    seconds of a "no answer within Ns" are multiplied with.
    """

    name: str
    real: bool
    patience: float

    def command(self, argv: tuple[str, ...], port: int) -> list[str]:
        """The server's command line; ``argv`` is the case's."""
        ...

    def cli(self, argv: tuple[str, ...]) -> list[str]:
        """The command line of a ``cli`` step."""
        ...

    def environ(self, wanted: Mapping[str, str | None], port: int, home: Path) -> dict[str, str]:
        """The whole environment for a server at ``port`` with files under ``home``."""
        ...

    def ready(self, port: int) -> bool:
        """Whether it serves."""
        ...

    def workers(self, server_pid: int) -> list[Worker]:
        """Processes under the server that models live in."""
        ...

    def clean(self, server: Server) -> None:
        """Bring a server that served a case back to where it began: nothing loaded."""
        ...


@dataclass(slots=True)
class Server:
    """A started engine. ``log`` is its output."""

    engine: Engine
    process: subprocess.Popen[bytes]
    port: int
    home: Path
    log: Path
    env: dict[str, str]
    argv: tuple[str, ...] = ()
    played: int = 0
    orphans: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def workers(self) -> list[Worker]:
        """See ``Engine.workers``; those that a dead server left behind are known from before."""
        return self.engine.workers(self.process.pid)

    def logged(self, since: int = 0) -> list[str]:
        """Lines of output from byte ``since`` on."""
        with self.log.open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace").splitlines()

    def stop(self) -> None:
        """End it and everything it started (it leads a session of its own)."""
        for pid in [*self.orphans, *session(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(20)


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = ((pid, procfs.stat(pid)) for pid in procfs.pids())
    return [pid for pid, one in found if one and one.session == leader and one.alive]


def children(pid: int) -> list[int]:
    """Living child processes, of whichever thread (a Go program forks in any)."""
    words: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            words += task.read_text().split()
    living = ((int(one), procfs.stat(int(one))) for one in words)
    return [one for one, found in living if found and found.alive]


def argv_of(pid: int) -> list[str]:
    """Its command line, [] when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


class Servers:
    """The servers of one test process, by engine and environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[tuple[object, ...], Server] = {}
        self._count = 0

    @contextmanager
    def serving(self, engine: Engine, case: Case) -> Iterator[Server]:
        """A clean server for a case; it goes on living for the next case if it still can."""
        key = (id(engine), tuple(sorted(case.env.items(), key=str)), case.argv)
        server = self._running.get(key)
        if server is None or not server.alive:
            server = self._running[key] = self._start(engine, case)
        try:
            yield server
        finally:
            server.played += 1
            try:
                if server.alive:
                    engine.clean(server)
            except BaseException:
                self._running.pop(key).stop()
                raise
            if not server.alive:
                self._running.pop(key).stop()

    def _start(self, engine: Engine, case: Case) -> Server:
        self._count += 1
        home = self._folder / str(self._count)
        home.mkdir()
        port = free_port()
        env = engine.environ(case.env, port, home)
        log = home / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                engine.command(case.argv, port),
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(engine, process, port, home, log, env, case.argv)

        def up() -> bool:
            if not server.alive:
                raise AssertionError(
                    f"{engine.name} ended: {process.returncode}\n{log.read_text()[-2000:]}"
                )
            return engine.ready(port)

        try:
            wait_until(up, 400 if engine.real else 120, f"{engine.name} to serve")
        except BaseException:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        """End all."""
        for server in self._running.values():
            server.stop()


class SlowLoad:
    """Stops the next worker (SIGSTOP) as soon as it exists: its load then takes for ever."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known = {one.pid for one in server.workers()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.is_set():
            for one in self._server.workers():
                if one.pid not in self._known:
                    with suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGSTOP)
                    return
            time.sleep(0.002)

    def end(self) -> None:
        """Watch no longer."""
        self._over.set()
        self._thread.join()


def lines_matching(lines: list[str], patterns: list[str], most: int) -> list[str]:
    """The first ``most`` lines that match one of the patterns."""
    found = [line for line in lines if any(re.search(one, line) for one in patterns)]
    return found[:most]
