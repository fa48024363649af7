"""A whole host for a test: a simulated GPU, stand-in engines, the real daemon, a client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import requests

from arbiterd.linux import procfs
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu
from tests.support import PATIENCE_S, free_port, wait_until
from tests.support.forks import Forked, ended, forks

MODEL = "Qwen/Qwen2.5-3B-Instruct"
NAMES = ("tensorflow", "vllm", "ollama")
READY_S = 40.0
Json = dict[str, Any]


class Host:
    """Folders, ports, configuration and the daemon of one test."""

    def __init__(self, home: Path, lib: Path, profiles: tuple[str, ...] = ("rtx4090-24g",),
                 *, gateway: bool = False) -> None:  # fmt: skip
        assert len(f"{home}/run/admin.sock") < 108, "a unix socket's path is short"
        self.home, self.lib = home, lib
        self.gpu = SimGpu.create(home / "gpu", lib, profiles)
        self.gateway = gateway
        self.grpc = False  # whether TensorFlow's stand-in serves gRPC: a fifth of its start
        self.listen = free_port()
        self.ports = {name: free_port() for name in (*NAMES, "grpc", "other", "llm")}
        self.config = home / "gpu-arbiter.toml"
        self.log = home / "daemon.log"
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._told: list[Json] = []
        self._reading = threading.Lock()
        self.since = 0  # where the entries of the test that has it now begin
        self._read = 0  # bytes of the log that are in _told
        self.session = requests.Session()
        self.session.trust_env = False
        # a kept connection to a door may be closed by HAProxy while the next request is on its way
        self.session.headers["Connection"] = "close"
        for folder in ("models/resnet50/1", "faults", "run", "state"):
            (home / folder).mkdir(parents=True)

    # -- configuration -------------------------------------------------------------------------
    def write(self, modes: str, *, backends: str = "", extra: str = "", only: tuple[str, ...] = NAMES,
              mode: str = "A", keys: Mapping[str, str] | None = None) -> None:  # fmt: skip
        """The file: ``modes`` are the [modes.X] tables; ``keys`` adds keys to a backend."""
        more = keys or {}
        parts = [f'mode = "{mode}"', self._arbiter()]
        parts += [f"[backends.{n}]\n{self._backend(n)}\n{more.get(n, '')}" for n in only]
        self.config.write_text("\n\n".join([*parts, backends, modes, extra]) + "\n")

    def _arbiter(self) -> str:
        return (
            f'[arbiter]\nlisten = "127.0.0.1:{self.listen}"\nlauncher = "direct"\nlog = "json"\n'
            'local_users = "trusted"\n'  # else no vLLM sleeps here: nothing sets the rule of its port
            f'poll = "100ms"\nstate_dir = "{self.home}/state"\nruntime_dir = "{self.home}/run"\n'
            f"[gateway]\nenabled = {str(self.gateway).lower()}\nllm_port = {self.ports['llm']}\n"
        )

    def env_line(self, name: str) -> str:
        """The env key every stand-in needs."""
        more = ', GPU_SIM_GRPC = "off"' if name == "tensorflow" and not self.grpc else ""
        return (
            f'env = {{ {STATE_ENV} = "{self.home}/gpu", {LIB_ENV} = "{self.lib}", '
            f'GPU_SIM_FAULTS = "{self.home}/faults/{name}.json"{more} }}'
        )

    def _backend(self, name: str) -> str:
        module = f'"{sys.executable}", "-m", "arbiterd.sim.engines.{name}"'
        port = f'port = {self.ports[name]}\nrestart_delay = "200ms"\ndrain_timeout = "2s"\n'
        match name:
            case "tensorflow":
                own = (
                    f'command = [{module}]\nmodels = {{ resnet50 = "{self.home}/models/resnet50" }}\n'
                    f"grpc_port = {self.ports['grpc']}\n"
                )
            case "vllm":
                own = f'command = [{module}, "serve", "{MODEL}"]\nstuck_after = "5s"\nmax_model_len = 8192\n'
            case _:
                own = (
                    f'command = [{module}, "serve"]\nmodels = ["qwen2.5:3b"]\nversion = "0.33.0"\n'
                )
        return own + port + self.env_line(name)

    def fault(self, name: str, **values: object) -> None:
        """Switch misbehaviour of a stand-in on (no values: off)."""
        path = self.home / "faults" / f"{name}.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(values))
        temporary.replace(path)

    # -- the daemon ----------------------------------------------------------------------------
    def environ(self, **more: str) -> dict[str, str]:
        """The daemon's environment: pynvml meets the simulated GPU."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPU_ARBITER_")}
        sim = {STATE_ENV: str(self.home / "gpu"), LIB_ENV: str(self.lib)}
        return {**kept, **sim, "LD_LIBRARY_PATH": str(self.lib), **more}

    def start(self, **environ: str) -> None:
        """Start the daemon and wait for its API."""
        with self.log.open("ab") as log:
            self.process = self._daemon(self.environ(**environ), log)
        wait_until(self._answers, 15, "the API")

    def _daemon(self, environ: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes] | Forked:
        """Forked in a test (nine tenths of a start are imports); a benchmark measures the whole start."""
        argv = ["--config", str(self.config)]
        if _in_a_test():
            return forks(environ).daemon(argv, environ, log)
        return subprocess.Popen(
            [sys.executable, "-m", "arbiterd", *argv],
            env=environ,
            stderr=log,
            stdout=log,
            start_new_session=True,
        )

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            msg = f"the daemon ended with {self.process.returncode}: {self.log.read_text()[-2000:]}"
            raise AssertionError(msg)
        try:
            return self.get("/livez").status_code == 200
        except requests.ConnectionError:
            return False

    def run_to_end(self, timeout_s: float = 120.0, **environ: str) -> tuple[int, str]:
        """Run the daemon until it ends by itself: (exit status, stderr)."""
        done = subprocess.run(
            [sys.executable, "-m", "arbiterd", "--config", str(self.config)],
            env=self.environ(**environ),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stderr

    def signal(self, number: signal.Signals) -> None:
        """A signal to the daemon."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 120.0) -> int:
        """SIGTERM, wait: everything is stopped in order."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL: the engines go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End everything this host has started, by its tag."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in (*self.tagged(), *self.services()):
            _kill(pid)
        self.session.close()
        self.gpu.close()

    def tagged(self) -> list[int]:
        """Pids whose environment names this host's simulated GPU, the daemon's own aside."""
        mark = f"GPU_SIM_FAULTS={self.home}/".encode()
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                if mark in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
        return found

    def services(self) -> list[int]:
        """Pids of this host's HAProxy (master and workers) and load gate, by their command line."""
        mark = f"{self.home}/run/gateway/".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    if mark in Path(f"/proc/{name}/cmdline").read_bytes():
                        found.append(int(name))
                except OSError:
                    continue
        return found

    def door(self, name: str, path: str = "") -> str:
        """A public URL."""
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    # -- looking -------------------------------------------------------------------------------
    def url(self, path: str) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.listen}{path}"

    def get(self, path: str) -> requests.Response:
        """GET of the API."""
        return self.session.get(self.url(path), timeout=PATIENCE_S)

    def status(self) -> Json:
        """/v1/status."""
        found: Json = self.get("/v1/status").json()
        return found

    def backend(self, name: str) -> Json:
        """One backend."""
        found: Json = self.get(f"/v1/backends/{name}").json()
        return found

    def gpu_row(self, index: int = 0) -> Json:
        """One GPU."""
        found: Json = next(g for g in self.status()["gpus"] if g["index"] == index)
        return found

    def events(self, name: str = "", backend: str = "", since: int | None = None) -> list[Json]:
        """Journal entries (JSON lines) from a mark on: without one, from where this test has begun."""
        return [
            one
            for one in self._entries()[self.since if since is None else since :]
            if (not name or one.get("ARBITER_EVENT") == name)
            and (not backend or one.get("ARBITER_BACKEND") == backend)
        ]

    def _entries(self) -> list[Json]:
        """All entries; what has been read is not read again."""
        with self._reading, self.log.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]  # the last line may be half written
            self._read += len(whole) + bool(whole)
            self._told += [json.loads(one) for one in whole.split(b"\n") if one.startswith(b"{")]
            return self._told

    def mark(self) -> int:
        """How many entries there are: ``events(since=)`` has what comes from now on."""
        return len(self._entries())

    def mains(self) -> dict[str, int]:
        """The main process of each backend; its children (Ollama's runner) come and go by themselves."""

        def oldest(pids: list[int]) -> int:
            there = [found for pid in pids if (found := procfs.ref(pid))]
            return min(there, key=lambda one: one.start_time).pid if there else 0

        return {one["name"]: oldest(one["pids"]) for one in self.status()["backends"]}

    def incidents(self, backend: str = "") -> list[Json]:
        """Incidents, newest first."""
        query = f"?backend={backend}" if backend else ""
        found: list[Json] = self.get(f"/v1/incidents{query}").json()["incidents"]
        return found

    def wait(self, check: Callable[[], object], what: str, timeout_s: float = READY_S,
             *, every_s: float = 0.02) -> None:  # fmt: skip
        """Until ``check`` is true; on failure the log's end is shown."""
        try:
            wait_until(check, timeout_s, what, every_s)
        except AssertionError as error:
            msg = f"{error}\n{self.log.read_text()[-3000:]}"
            raise AssertionError(msg) from None

    def wait_ready(self, *names: str) -> None:
        """Until these (or all) accept work."""

        def all_accept() -> bool:
            found = {b["name"]: b["accepting"] for b in self.status()["backends"]}
            wanted = names or tuple(found)
            return bool(found) and all(found.get(name) for name in wanted)

        self.wait(all_accept, f"{names or 'all'} to accept", every_s=0.1)
        if self.backend("ollama").get("phase") == "ready" and (not names or "ollama" in names):
            with suppress(AssertionError):  # where pressure holds it, the test is about that
                wait_until(self._warm, 10, "Ollama's first model")

    def _warm(self) -> bool:
        """Whether Ollama's warm load has ended: its door is open before that."""
        return any(" is loaded after" in e["MESSAGE"] for e in self.events("", "ollama", 0))

    def wait_phase(self, name: str, *phases: str, timeout_s: float = READY_S) -> None:
        """Until a backend is in one of these phases."""
        self.wait(lambda: self.backend(name).get("phase") in phases, f"{name} {phases}", timeout_s)

    def wait_event(self, name: str, backend: str = "", count: int = 1) -> Json:
        """Until so many events were told; returns the last."""
        self.wait(lambda: len(self.events(name, backend)) >= count, f"event {name} of {backend}")
        return self.events(name, backend)[-1]

    def ctl_process(self, *argv: str) -> subprocess.Popen[str] | Forked:
        """A running arbiterctl."""
        environ, words = self.environ(), ["--config", str(self.config), *argv]
        if _in_a_test():
            return forks(environ).ctl(words, environ)
        return subprocess.Popen(
            [sys.executable, "-m", "arbiterd.cli", *words],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ctl(self, *argv: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """arbiterctl."""
        return ended(self.ctl_process(*argv), argv, timeout_s)


def _in_a_test() -> bool:
    return "PYTEST_CURRENT_TEST" in os.environ


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def running(host: Host) -> Iterator[Host]:
    """Start, and end everything afterwards."""
    try:
        host.start()
        yield host
    finally:
        host.close()


def settle(check: Callable[[], object], for_s: float) -> bool:
    """Whether ``check`` stays true for so long: for what must NOT happen."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        if not check():
            return False
        time.sleep(0.05)
    return True


SHARED = """\
[modes.A]
tensorflow = { gpu = 0, memory = "20%" }
vllm = { gpu = 0, memory = "55%" }
ollama = { gpu = 0, memory = "20%" }
"""
