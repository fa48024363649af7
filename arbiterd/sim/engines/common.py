"""What the stand-ins share: faults, the GPU, a small HTTP server, lines of JSON between processes."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from arbiterd.quantities import GIB, MIB
from arbiterd.sim.engines import misbehave
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu

FAULTS_ENV = "GPU_SIM_FAULTS"
CONTEXT_BYTES = 400 * MIB  # a CUDA context on a 24 GiB consumer card takes 300-600 MiB


class Faults:
    """Switches in a file, read anew whenever it changes, so that they take effect within 50 ms.

    All: start_delay_s, load_s, exit_on_start (a code), last_words, die_after_s, die_code, hang,
    oom_next_request, health_status, version; leak_mib_per_s, leak_bytes_per_s, leak_max_mib: memory
    beyond what it should hold (it stays when the leak is switched off; a refused step ends or hurts
    the engine as the real one's does). vLLM, Ollama: weights_bytes, token_s. vLLM: activation_bytes,
    sleep_s, wake_s, sleep_residual_mib, sleep_fails. Ollama: unload_delay_s, unload_ignored (the
    runner stays: 'Stopping...'), parameters, ping_s (how long it waits for a runner's pulse); its runners: grow_mib_per_s over their plan, up to
    grow_max_mib. TensorFlow: predict_s; with memory growth grow_mib_per_s within the fraction;
    oom_crash ("in_use", "bad_alloc", "cudnn"): a full card ends it.
    All, done to the host (``misbehave``): ignore_sigterm (from the next start on), fork_bomb (so many
    children), double_fork ("tagged", "bare"), close_port (it lives on), flood ("lines", "one_line",
    "binary"), host_mib (memory of the host). All with /metrics: metrics (a text instead of theirs).
    """

    def __init__(self) -> None:
        self._path = Path(os.environ.get(FAULTS_ENV) or "/nonexistent")
        self._stamp = (0, 0)
        self._values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value now."""
        try:
            found = self._path.stat()
            stamp = found.st_mtime_ns, found.st_ino
        except OSError:
            return default
        if stamp != self._stamp:
            with suppress(OSError, ValueError):
                self._values = json.loads(self._path.read_text())
                self._stamp = stamp
        return self._values.get(key, default)

    def take(self, key: str) -> bool:
        """True once for a switch like oom_next_request: it is cleared in the file."""
        if not self.get(key):
            return False
        values = {name: value for name, value in self._values.items() if name != key}
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(values))
        temporary.replace(self._path)
        return True

    def wait_while_hung(self) -> None:
        """Hang as long as the switch is on."""
        while self.get("hang"):
            time.sleep(0.05)

    def at_start(self) -> None:
        """exit_on_start, start_delay_s, die_after_s; what is done to the host from here on."""
        misbehave.begin(self, str(self._path), close_ports)
        code = self.get("exit_on_start")
        if code is not None:
            say(self.get("last_words", "exit_on_start was set"))
            sys.exit(int(code))
        began = time.monotonic()
        # read again and again: a start may be let go on, so that a test need not guess how long it takes
        while time.monotonic() - began < float(self.get("start_delay_s", 0)):
            time.sleep(0.02)
        after = self.get("die_after_s")
        if after is not None:
            threading.Timer(float(after), lambda: os._exit(int(self.get("die_code", 1)))).start()


def say(text: str) -> None:
    """One line of log output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Card:
    """The GPU this process may see, by CUDA_VISIBLE_DEVICES; CUDA's arithmetic of it."""

    def __init__(self) -> None:
        state = os.environ.get(STATE_ENV)
        self.gpu: SimGpu | None = None
        self.device, self.mig = -1, -1
        if not state:
            return
        gpu = SimGpu.attach(Path(state), Path(os.environ.get(LIB_ENV, "")))
        seen = gpu.visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if seen and not gpu.lost(seen[0][0]):
            self.gpu = gpu
            self.device, self.mig = seen[0]

    @property
    def present(self) -> bool:
        """Whether there is a GPU for this process."""
        return self.gpu is not None

    def sizes(self) -> tuple[int, int]:
        """(free, total) as cudaMemGetInfo tells them: total is NVML's total - reserved."""
        if self.gpu is None:
            return 0, 0
        total, reserved, _used, free = self.gpu.memory(self.device, self.mig)
        return free, total - reserved

    def alloc(self, size: int) -> int:
        """Take memory; returns the handle.

        Raises:
            OutOfMemory: it is not there.
        """
        if self.gpu is None:
            return -1
        return self.gpu.alloc(self.device, size, pid=os.getpid(), mig=self.mig)

    def resize(self, handle: int, size: int) -> None:
        """Grow or shrink an allocation."""
        if self.gpu is not None:
            self.gpu.resize(handle, size, self.device, self.mig)

    def free(self, handle: int) -> None:
        """Give it back."""
        if self.gpu is not None and handle >= 0:
            self.gpu.free(handle)


def gib(size: float) -> str:
    """As PyTorch and vLLM print it."""
    return f"{size / GIB:.2f}"


class Link:
    """Lines of JSON over a socket between an API process and its worker."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """One message; silent when the other end is gone."""
        with self._lock, suppress(OSError):
            self._sock.sendall(json.dumps(message).encode() + b"\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with suppress(OSError, ValueError):
            for line in self._file:
                yield json.loads(line)


class Handler(BaseHTTPRequestHandler):
    """JSON in, JSON or chunks out. Subclasses map (method, path) to methods."""

    protocol_version = "HTTP/1.1"
    routes: ClassVar[dict[tuple[str, str], str]] = {}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Access logs are off, as the arbiter starts the real ones."""

    def _dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        name = self.routes.get((self.command, parts.path))
        with suppress(BrokenPipeError, ConnectionResetError):
            if name is not None:
                getattr(self, name)()
            else:
                self.other(parts.path)

    do_GET = do_POST = do_HEAD = do_DELETE = _dispatch  # noqa: N815 - the base class's names

    def other(self, path: str) -> None:
        """Any path without a route."""
        del path
        self.reply(404, {"detail": "Not Found"})

    def body(self) -> dict[str, Any]:
        """The JSON body, {} when there is none or it is not an object."""
        length = int(self.headers.get("Content-Length") or 0)
        with suppress(ValueError):
            found = json.loads(self.rfile.read(length) or b"{}")
            if isinstance(found, dict):
                return found
        return {}

    def reply(self, status: int, value: Any = None, kind: str = "application/json") -> None:
        """A whole answer."""
        raw = (
            b""
            if value is None
            else value.encode()
            if isinstance(value, str)
            else json.dumps(value).encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def begin_stream(self, kind: str) -> None:
        """Headers of a chunked answer."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, text: str) -> None:
        """One chunk; the empty text ends the stream."""
        raw = text.encode()
        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        self.wfile.flush()


LISTENERS: list[Callable[[], None]] = []  # how this process's ports are closed


def close_ports() -> None:
    """All ports of this process refuse from now on; connections that are open stay so."""
    while LISTENERS:
        LISTENERS.pop()()


class Server(ThreadingHTTPServer):
    """Bound at once or only when told: real engines differ in that."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], handler: type[Handler], *, listen: bool) -> None:
        LISTENERS.append(self.shut)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler, bind_and_activate=False)
        self.server_bind()
        if listen:
            self.server_activate()

    def server_bind(self) -> None:
        """Without the reverse lookup of the base class: it may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )

    def shut(self) -> None:
        """The port refuses from now on; connections that are open stay so."""
        self.shutdown()
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""
