"""The doors alone: real HAProxy and load gate over engines that say what they were asked. No daemon:
the live map is the test's own, so that a state lasts as long as the test wants.
"""

from __future__ import annotations

import base64
import hashlib
import json
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from arbiterd.act.gateway.door_keys import DoorKeys
from arbiterd.gateway import live_map, render, runtime
from arbiterd.gateway.layout import FILES, HERE, layout
from arbiterd.gateway.paths import paths
from arbiterd.loadgate.config import gate_config
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish
from arbiterd.model.settings import Failover, Kind, Settings
from arbiterd.secrets.keyring import Keyring
from tests.core.world import backend, settings
from tests.support import free_port, wait_until

VLLM_MODEL, OLLAMA_MODEL = "M", "qwen2.5:3b"
RULE = Failover(VLLM_MODEL, "vllm", "ollama", OLLAMA_MODEL)


@dataclass
class Seen:
    """One request as an engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """One answer, read to the end of the connection or of its length."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.idle_s)
        self.server.connections += 1
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def log_error(self, *args: object) -> None:
        """Only one thing is told so: nothing has come for ``idle_s``."""
        self.server.ended_idle += 1

    def _any(self) -> None:
        body = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        elif length := int(self.headers.get("Content-Length") or 0):
            body = self.rfile.read(length)
        path = urlsplit(self.path).path
        low = {k.lower(): v for k, v in self.headers.items()}
        kept = body[: self.server.keeps]
        self.server.seen.append(Seen(self.command, self.path, low, kept))
        if low.get("upgrade", "").lower() == "websocket":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            key = (
                low["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            )  # RFC 6455, 4.2.2
            self.send_header(
                "Sec-WebSocket-Accept",
                base64.b64encode(hashlib.sha1(key.encode()).digest()).decode(),
            )
            self.end_headers()
            self.wfile.flush()
            self.server.gate.wait(30)
            self.close_connection = True
            return
        self.server.gate.wait(30)
        key = self.server.key
        if key and path.startswith("/v1/") and low.get("authorization") != f"Bearer {key}":
            raw = b'{"error":"Unauthorized"}'  # as vLLM
            self.send_response(401)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
            return
        if path in self.server.streams:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            old = self.request_version == "HTTP/1.0"  # as uvicorn and Go: no chunks, then the end
            self.close_connection = old
            self.send_header(
                *(("Connection", "close") if old else ("Transfer-Encoding", "chunked"))
            )
            self.end_headers()
            for part in (b"data: 1\n\n", b"data: [DONE]\n\n", b""):
                self.wfile.write(part if old else f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.flush()
            return
        value = self.server.answers.get(path, {"engine": self.server.name, "path": path})
        raw = json.dumps(value).encode()
        self.send_response(self.server.statuses.get(path, 200))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    do_GET = do_POST = do_HEAD = do_OPTIONS = do_DELETE = _any  # noqa: N815


class Engine(ThreadingHTTPServer):
    """Answers 200 to everything. ``gate``: cleared, it holds every answer back. ``key``: what it
    demands below /v1, "" for nothing. ``idle_s``: how long it leaves an idle connection open, None: for ever.
    ``connections``: all so far; ``open``: of these; ``ended_idle``: ended by itself, idle for so long.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self.gate = threading.Event()
        self.gate.set()
        self.answers: dict[str, Any] = {}
        self.statuses: dict[str, int] = {}  # other than 200, by path
        self.streams: set[str] = set()
        self.key = ""
        self.keeps: int | None = None  # bytes of each body, None: all
        self.idle_s: float | None = None
        self.connections = self.ended_idle = 0
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away."""

    def close(self) -> None:
        """Gone, as after a crash: its port refuses."""
        self.gate.set()
        self.shutdown()
        self.server_close()
        for one in tuple(self.open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Desk(BaseHTTPRequestHandler):
    """Grants every load."""

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        raw = b'{"verdict":"grant"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class _UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.bind(str(self.server_address))
        self.server_name, self.server_port = "desk", 0

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], ("desk", 0)


@dataclass
class Doors:
    """``say(name, admit)`` is what the daemon would tell; ``ask`` is a client."""

    settings: Settings
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="gpua-d-", dir="/tmp")))
    engines: dict[str, Engine] = field(default_factory=dict)
    here: tuple[str, ...] = ("gpu-host", "gpu-host.lab.example")
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    entries: dict[str, str] = field(default_factory=dict)
    wishes: dict[str, BackendWish] = field(default_factory=dict)
    failover: dict[tuple[str, str], str] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    ring: Keyring = field(default_factory=Keyring)
    trusted: tuple[str, ...] = HERE

    @property
    def ports(self) -> dict[str, int]:
        """Public ones; ``extra``: what a test puts in front."""
        found = {n: b.port for n, b in self.settings.active.backends.items()}
        return {**found, "llm": self.settings.gateway.llm_port, **self.extra}

    def start(self) -> None:
        """Engines, gate, HAProxy, and the word of a daemon that lets everything in."""
        where = paths(str(self.home), systemd=False)
        where.files.mkdir(parents=True)
        keys = DoorKeys(where, self.ring, shared=False)
        known = keys.of(self.settings, 0.0)
        keys.write()
        made = layout(self.settings, here=self.here, keys=known)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = FILES if most == resource.RLIM_INFINITY else most
        self.layout = replace(made, trusted=self.trusted, files=files)
        where.config.write_text(render.render(self.layout, where, systemd=False))
        where.lua.write_text(render.lua(where))
        (where.files / "empty").write_text("")
        where.gate_config.write_text(json.dumps(gate_config(self.settings, where, known.guarded)))
        self.where = where
        for name, one in self.settings.active.backends.items():
            self.engines[name] = Engine(name, one.engine_port)
            self.wishes[name] = BackendWish(
                name, Admit.UP, True, "", 1, 1, one.max_in_flight, one.max_queue, version="0.33.0"
            )
        self.tell()
        self.desk = _UnixServer(str(where.loads), _Desk)  # type: ignore[arg-type]
        threading.Thread(target=self.desk.serve_forever, args=(0.02,), daemon=True).start()
        self._run(sys.executable, "-m", "arbiterd.loadgate", str(where.gate_config))
        wait_until(where.gate.exists, 20, "the load gate")
        self._run("/usr/sbin/haproxy", "-W", "-S", str(where.master), "-f", str(where.config))
        wait_until(self._up, 20, "HAProxy")

    def _run(self, *argv: str) -> None:
        log = (self.home / f"{Path(argv[0]).name}.log").open("ab")
        with log:
            self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log, cwd=self.home))

    def _up(self) -> bool:
        try:
            look = runtime.look(self.where.runtime, self.where.live)
        except runtime.GatewayGone:
            assert self.processes[-1].poll() is None, (self.home / "haproxy.log").read_text()
            return False
        self.entries[f"pid:{look.pid}"] = "ok"
        self.tell()
        return True

    def say(self, name: str, admit: Admit, why: str = "") -> None:
        """What the daemon wants of one backend."""
        self.wishes[name] = replace(
            self.wishes[name],
            admit=admit,
            accepting=admit is Admit.UP,
            why=f"{name}: {why}" if why else "",
            retry_after_s=7,
        )
        self.tell()

    def tell(self) -> None:
        """The map, as the keeper writes and tells it."""
        made = live_map.live(
            GatewayWish(self.wishes, self.failover, self.adapters), self.layout, self.settings
        )
        made |= {k: v for k, v in self.entries.items() if k.startswith("pid:")}
        old, self.entries = self.entries, made
        self.where.live.write_text(live_map.text(made))
        if not any(key.startswith("pid:") for key in made):
            return
        said = live_map.parse(runtime.look(self.where.runtime, self.where.live).live)
        commands = [
            f"{'set' if key in said else 'add'} map {self.where.live} {key} {runtime.escape(value)}"
            for key, value in made.items() if said.get(key) != value
        ]  # fmt: skip
        commands += [
            f"del map {self.where.live} {key}" for key in old if key not in made and key in said
        ]
        if commands:
            runtime.tell(self.where.runtime, commands)

    def ask(
        self, door: str, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None,
        body: bytes = b"", host: str | None = "localhost", version: str = "1.1",
    ) -> Reply:  # fmt: skip
        """A client of few words: exactly these bytes, a connection of its own."""
        lines = [f"{method} {path} HTTP/{version}"]
        if host is not None:
            lines.append(f"Host: {host}")
        if body and not any(k.lower() == "transfer-encoding" for k in headers or {}):
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
        if not any(k.lower() == "connection" for k in headers or {}):
            lines.append("Connection: close")
        raw = "\r\n".join([*lines, "", ""]).encode() + body
        with socket.create_connection(("127.0.0.1", self.ports[door]), timeout=300) as one:
            one.sendall(raw)
            got = b""
            while part := one.recv(65536):
                got += part
        return parse(got)

    def post(self, door: str, path: str, value: Any, **kw: Any) -> Reply:
        """JSON."""
        headers = {"Content-Type": "application/json", **kw.pop("headers", {})}
        return self.ask(
            door, path, method="POST", headers=headers, body=json.dumps(value).encode(), **kw
        )

    def close(self) -> None:
        """End all of it."""
        for process in self.processes:
            process.kill()
            process.wait()
        for engine in self.engines.values():
            engine.close()
        self.desk.shutdown()
        self.desk.server_close()
        shutil.rmtree(self.home, ignore_errors=True)


def parse(raw: bytes) -> Reply:
    """Status, headers in lower case (several of one name joined), body without its chunks."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        low = name.lower()
        headers[low] = f"{headers[low]}, {value}" if low in headers else value
    if "chunked" in headers.get("transfer-encoding", ""):
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            if size == b"0":
                headers["x-ended"] = "yes"
                break
    return Reply(int(first.split()[1]) if first else 0, headers, body)


def chunked(body: bytes, size: int = 1000) -> bytes:
    """As chunks."""
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in [*parts, b""])


def made(change: Callable[[Settings], Settings] | None = None, **gateway: Any) -> Settings:
    """TensorFlow, vLLM and Ollama on free ports, vLLM's model with a substitute."""
    base = settings()
    kinds = {"tensorflow": Kind.TENSORFLOW, "vllm": Kind.VLLM, "ollama": Kind.OLLAMA}
    own: dict[str, dict[str, Any]] = {
        "tensorflow": {"models": ("m",)},
        "vllm": {},
        "ollama": {"models": (OLLAMA_MODEL,)},
    }
    backends = {
        name: backend(
            name, kind, port=free_port(), engine_port=free_port(), max_in_flight=4, max_queue=4,
            queue_timeout_s=3.0, **own[name],
        )
        for name, kind in kinds.items()
    }  # fmt: skip
    out = replace(
        base,
        modes={"A": replace(base.active, backends=backends)},
        failover=(RULE,),
        gateway=replace(base.gateway, llm_port=free_port(), **gateway),
    )
    return change(out) if change else out


@contextmanager
def doors(
    given: Settings | None = None, ring: Keyring | None = None, trusted: tuple[str, ...] = HERE
) -> Iterator[Doors]:
    """Open; closed at the end. ``ring``: what the daemon has learned about keys. ``trusted``: sources
    that are not counted.
    """
    one = Doors(given or made(), ring=ring or Keyring(), trusted=trusted)
    try:
        one.start()
        yield one
    finally:
        one.close()


OLLAMA_ANSWERS = {
    "/api/ps": {"models": [{"name": OLLAMA_MODEL, "model": OLLAMA_MODEL, "expires_at": "0001-01-01T00:00:00Z"},
                           {"name": VLLM_MODEL, "model": VLLM_MODEL, "expires_at": "0001-01-01T00:00:00Z"}]},
    "/api/tags": {"models": [{"name": OLLAMA_MODEL, "size": 1000, "digest": "d"}, {"name": "other:1b", "size": 9, "digest": "e"},
                             {"name": f"{VLLM_MODEL}:latest", "size": 1000, "digest": "d"}]},
    "/v1/models": {"object": "list", "data": [{"id": OLLAMA_MODEL, "object": "model", "created": 1700000000, "owned_by": "library"},
                                              {"id": "other:1b", "object": "model", "created": 1700000001, "owned_by": "library"}]},
    "/api/show": {"model_info": {}, "capabilities": ["completion"]},
    "/api/copy": {},
}  # fmt: skip
