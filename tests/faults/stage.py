"""What a fault needs of the host it is played on, whatever starts the daemon there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import requests

from arbiterd.linux import procfs
from arbiterd.sim.gpu import SimGpu

Json = dict[str, Any]
VLLM_MODEL = "Qwen/Qwen2.5-3B-Instruct"
ASKS: dict[str, tuple[str, Json]] = {
    "tensorflow": ("/v1/models/resnet50:predict", {"instances": [[1.0]]}),
    "vllm": ("/v1/completions", {"model": VLLM_MODEL, "prompt": "x", "max_tokens": 2}),
    "ollama": (
        "/api/generate",
        {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 2}},
    ),
}
PATIENCE_S = 60.0


class Missing(AssertionError):
    """What was promised did not come."""


def until(check: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Poll until ``check()`` is truthy; returns it.

    Raises:
        Missing: not within ``timeout_s`` seconds.

    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            last = check()
        except (OSError, requests.RequestException, ValueError, LookupError) as error:
            last = f"{type(error).__name__}: {error}"
        else:
            if last:
                return last
        if time.monotonic() >= deadline:
            msg = f"not within {timeout_s:g} s: {what}; last: {str(last)[:300]}"
            raise Missing(msg)
        time.sleep(0.05)


def stays(check: Callable[[], object], what: str, for_s: float) -> None:
    """For what must not happen.

    Raises:
        Missing: it has happened.

    """
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        if not check():
            msg = f"{what}: no longer"
            raise Missing(msg)
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Size:
    """What a process costs: resident bytes, descriptors, threads."""

    rss: int
    fds: int
    threads: int


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Stage(ABC):
    """A host with a daemon, its engines and doors. Folders: ``run`` and ``state``."""

    names: tuple[str, ...]
    run: Path
    state: Path
    config: Path
    faults: Path
    listen: int
    ports: dict[str, int]
    gpu: SimGpu

    def __init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.began: Any = None  # the journal's place before the fault that is being played

    # -- what differs --------------------------------------------------------------------------
    @abstractmethod
    def daemon_pid(self) -> int:
        """Of the daemon, 0 while there is none."""

    @abstractmethod
    def revive(self) -> None:
        """After the daemon has died: whoever starts it again does so, or has done so. Returns when
        it answers.
        """

    @abstractmethod
    def mark(self) -> Any:
        """A place in the journal."""

    @abstractmethod
    def entries(self, mark: Any) -> list[Json]:
        """Journal entries of the daemon since then."""

    @abstractmethod
    def text(self, mark: Any) -> str:
        """All the daemon's output since then."""

    @abstractmethod
    def tagged(self) -> list[int]:
        """Every process of this host's engines, by what their environment or arguments name."""

    # -- processes -----------------------------------------------------------------------------
    def gate_pid(self) -> int:
        """The load gate's process, 0 for none."""
        return next(iter(with_words("arbiterd.loadgate", f"{self.run}/gateway/")), 0)

    def haproxy_pids(self) -> list[int]:
        """HAProxy's master, then its workers."""
        return with_words("haproxy", f"{self.run}/gateway/haproxy.cfg")

    def instance(self) -> str:
        """What the direct launcher calls this host by."""
        return hashlib.sha256(str(self.run.resolve()).encode()).hexdigest()[:16]

    def reader_pids(self) -> list[int]:
        """NVML's readers."""
        daemon = self.daemon_pid()
        return [pid for pid in with_words("arbiterd.sense.nvml_worker") if _parent(pid) == daemon]

    def pid_of(self, name: str, part: str = "") -> int:
        """A backend's process whose command line has ``part``; its first where that is empty."""
        pids = until(lambda: self.backend(name).get("pids"), f"processes of {name}")
        for pid in sorted(pids):
            if part in procfs.command(pid):
                return int(pid)
        msg = f"{name} has no process with {part!r}"
        raise Missing(msg)

    def main_pid(self, name: str) -> int:
        """Its first process: the engine's own server."""
        part = {"vllm": "serve", "tensorflow": "engines.tensorflow", "ollama": "engines.ollama "}[
            name
        ]
        return self.pid_of(name, part)

    def size(self, pid: int) -> Size:
        """What a process costs now."""
        text = Path(f"/proc/{pid}/status").read_text()
        words = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        rss = int(words["VmRSS"].split()[0]) << 10
        return Size(rss, len(os.listdir(f"/proc/{pid}/fd")), int(words["Threads"]))

    # -- asking --------------------------------------------------------------------------------
    def get(self, path: str, timeout_s: float = 10.0) -> requests.Response:
        """GET of the API."""
        return self.session.get(f"http://127.0.0.1:{self.listen}{path}", timeout=timeout_s)

    def status(self) -> Json:
        """/v1/status."""
        found: Json = self.get("/v1/status").json()
        return found

    def backend(self, name: str) -> Json:
        """One backend's row."""
        found: Json = self.get(f"/v1/backends/{name}").json()
        return found

    def gpu_row(self, index: int = 0) -> Json:
        """One GPU's row."""
        return next(row for row in self.status()["gpus"] if row["index"] == index)

    def door(self, name: str, path: str = "") -> str:
        """A public URL."""
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def ask(self, name: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """A request of a client's: (status, who served it); (0, why) where there was no answer."""
        path, body = ASKS[name]
        try:
            # a connection of its own each time: a kept one tells nothing of the listener
            with requests.Session() as session:
                session.trust_env = False
                reply = session.post(self.door(name, path), json=body, timeout=timeout_s)
        except requests.RequestException as error:
            return 0, str(error)[:200]
        return reply.status_code, reply.headers.get("X-Arbiter-Served-By", "")

    def admin(self, path: str, timeout_s: float = 30.0) -> tuple[int, Json]:
        """POST to the admin socket."""
        connection = _UnixConnection(self.run / "admin.sock")
        connection.timeout = timeout_s
        try:
            connection.request("POST", path, headers={"Content-Length": "0"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read() or b"{}")
        finally:
            connection.close()

    def order(self, name: str, verb: str) -> None:
        """What arbiterctl asks for a backend."""
        status, body = self.admin(f"/v1/admin/backends/{name}/{verb}")
        if status != 202:
            msg = f"{verb} {name}: {status} {body}"
            raise Missing(msg)

    def events(self, mark: Any, name: str = "", backend: str = "") -> list[Json]:
        """Events since then."""
        return [
            one
            for one in self.entries(mark)
            if one.get("ARBITER_EVENT", "") == (name or one.get("ARBITER_EVENT"))
            and one.get("ARBITER_BACKEND", "") == (backend or one.get("ARBITER_BACKEND", ""))
            and one.get("ARBITER_EVENT")
        ]

    # -- disturbing ----------------------------------------------------------------------------
    def fault(self, name: str, **values: object) -> None:
        """Switch misbehaviour of a stand-in on (no values: off)."""
        path = self.faults / f"{name}.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(values))
        temporary.chmod(0o666)
        temporary.replace(path)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> int:
        """A signal; returns the pid."""
        os.kill(pid, number)
        return pid

    def hup(self) -> None:
        """SIGHUP of the daemon: read the file again."""
        os.kill(self.daemon_pid(), signal.SIGHUP)

    def calm(self) -> None:
        """No fault is switched on any more."""
        for name in self.names:
            self.fault(name)
        self.gpu.clear_faults()

    @abstractmethod
    def close(self) -> None:
        """End everything."""


def with_words(*words: str) -> list[int]:
    """Living processes whose command line has all of these, the oldest first."""
    out = []
    for pid in procfs.pids():
        with suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if all(one.encode() in line for one in words):
                found = procfs.stat(pid)
                if found is not None and found.alive:
                    out.append((found.start_time, pid))
    return [pid for _, pid in sorted(out)]


def _parent(pid: int) -> int:
    found = procfs.stat(pid)
    return found.parent if found is not None else 0


def dead(pids: Sequence[int]) -> bool:
    """Whether none of them lives."""
    return not any((found := procfs.stat(pid)) is not None and found.alive for pid in pids)
