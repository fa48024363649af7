"""The prober comes as clients come: by a new connection. One that is open says nothing of the port."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arbiterd.model.health import ProbeOrder
from arbiterd.model.reading import Known
from arbiterd.model.settings import Kind, Mode
from arbiterd.sense.health import Prober
from tests.core.world import backend, settings
from tests.support import free_port, wait_until


class _Engine(BaseHTTPRequestHandler):
    """Answers any health URL, on connections that stay open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """TensorFlow wants a state, the others a 200."""
        raw = json.dumps(
            {"model_version_status": [{"version": "1", "state": "AVAILABLE"}], "models": []}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def engine() -> Iterator[ThreadingHTTPServer]:
    """On a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), _Engine)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", [Kind.TENSORFLOW, Kind.VLLM, Kind.OLLAMA, Kind.GENERIC])
def test_a_closed_port_is_found_while_open_connections_answer(
    engine: ThreadingHTTPServer, kind: Kind
) -> None:
    """Its listener is gone, every connection from before still gets its 200."""
    name, url = kind.value, f"http://127.0.0.1:{engine.server_port}"
    names = ("m",) if kind is Kind.TENSORFLOW else ()
    over = {"models": names, "health": "/health"} if kind is Kind.GENERIC else {"models": names}
    one = backend(name, kind, engine_port=engine.server_port, **over)
    base = settings()
    given = replace(base, modes={"A": Mode("A", base.active.shares, {name: one})})
    prober = Prober(lambda: None)

    def verdict() -> str | None:
        found = prober.latest(time.monotonic()).get(name)
        if found is None or not isinstance(found.alive, Known):
            return None
        return found.alive.value.verdict.detail or "ok"

    try:
        prober.order((ProbeOrder(name, url, "f", fast=False, canary_due=False),), given)
        wait_until(lambda: verdict() == "ok", what="the first answer")
        engine.shutdown()
        engine.socket.close()
        wait_until(lambda: "refused" in str(verdict()), what="the closed port")
    finally:
        prober.close()
