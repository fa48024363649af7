"""The second probe on real processes: HAProxy, the load gate, and what refuses or hangs on the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arbiterd.act.gateway.reconciler import HAPROXY_SILENT_S
from arbiterd.gateway import runtime
from arbiterd.model.health import HealthObservation, ProbeOrder
from arbiterd.model.reading import Known
from arbiterd.sense.health import Prober
from tests.core.world import only
from tests.gateway.client import one, session
from tests.support import PATIENCE_S, free_port, wait_until
from tests.support.host import MODEL, NAMES, Host, settle


def pid_of(host: Host, name: str) -> int:
    """Of HAProxy's master or of the load gate."""
    return int(json.loads((host.home / f"run/gateway/{name}.pid.json").read_text())["pid"])


def refused(host: Host, name: str) -> bool:
    """Whether routers are told to stay away."""
    reply = host.get(f"/v1/backends/{name}/ready")
    return reply.status_code == 503 and int(reply.headers["Retry-After"]) >= 1


def served(host: Host, name: str) -> int:
    """Requests that HAProxy has sent by this backend."""
    where = host.home / "run/gateway/runtime.sock", host.home / "run/gateway/live.map"
    rows = runtime.look(*where).rows
    return sum(r.number("stot") for r in rows if r.proxy == name and r.name == "BACKEND")


def untouched(host: Host) -> Callable[[], bool]:
    """Whether every engine is still the same process and was never restarted."""

    def look() -> dict[str, object]:
        return {n: (host.backend(n)["pids"][:1], host.backend(n)["restarts"]) for n in NAMES}

    before = look()
    return lambda: look() == before


def test_a_hung_gate_is_found_and_replaced(host: Host) -> None:
    """SIGSTOP: Ollama answers, its clients would wait for ever. The others are not behind the gate, and
    no engine is touched.
    """
    same = untouched(host)
    gate = pid_of(host, "gate")
    os.kill(gate, signal.SIGSTOP)
    host.wait(lambda: refused(host, "ollama"), "routers to be told")
    assert not refused(host, "vllm")
    assert host.get("/v1/route?backend=ollama").json().get("backend") != "ollama"
    host.wait(lambda: pid_of(host, "gate") != gate, "another gate")
    host.wait_ready()
    assert not Path(f"/proc/{gate}").exists() or "Z" in state_of(gate)
    url, body = (
        host.door("ollama", "/api/generate"),
        {"model": "qwen2.5:3b", "prompt": "x", "stream": False},
    )
    host.wait(
        lambda: host.session.post(url, json=body, timeout=PATIENCE_S).status_code == 200, "Ollama"
    )
    assert same()


def state_of(pid: int) -> str:
    """As /proc tells it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return "Z"


def test_a_gate_that_is_gone_is_started(host: Host) -> None:
    """Under the direct launcher nobody but the daemon does."""
    gate = pid_of(host, "gate")
    os.kill(gate, signal.SIGKILL)
    host.wait(lambda: pid_of(host, "gate") != gate, "another gate")
    host.wait_ready()
    door = host.door("ollama", "/api/tags")
    host.wait(
        lambda: host.session.get(door, timeout=PATIENCE_S).status_code == 200, "Ollama's door"
    )
    assert pid_of(host, "gate") != gate


def test_haproxy_that_hangs_is_found_and_restarted(host: Host) -> None:
    """Master and worker stopped: no door answers, every router is told so; then doors are open again."""
    same = untouched(host)
    master = pid_of(host, "gateway")
    for pid in host.services():
        if pid != pid_of(host, "gate"):
            os.kill(pid, signal.SIGSTOP)
    host.wait(lambda: all(refused(host, n) for n in NAMES), "all to be refused")
    host.wait(lambda: pid_of(host, "gateway") != master, "another HAProxy", 90)
    host.wait_ready()
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    url = host.door("vllm", "/v1/completions")
    host.wait(
        lambda: host.session.post(url, json=body, timeout=PATIENCE_S).status_code == 200, "the door"
    )
    assert same()


def test_a_daemon_that_was_stopped_itself_restarts_nobody(host: Host) -> None:
    """Longer than any silence: it knows that it was away."""
    pids = pid_of(host, "gate"), pid_of(host, "gateway")
    host.signal(signal.SIGSTOP)
    time.sleep(HAPROXY_SILENT_S + 2)
    host.signal(signal.SIGCONT)
    host.wait_ready()
    assert settle(lambda: (pid_of(host, "gate"), pid_of(host, "gateway")) == pids, 3)


@pytest.mark.parametrize("name", ["tensorflow", "vllm", "ollama"])
def test_an_engine_that_closes_its_port_and_lives_is_out_everywhere(host: Host, name: str) -> None:
    """Old connections still answer: /ready, /v1/route, health URL and door agree all the same. A door
    may be answered by a substitute.
    """
    work: dict[str, tuple[str, str, object]] = {
        "tensorflow": ("/v1/models/resnet50", "/v1/models/resnet50:predict", {"instances": [1]}),
        "vllm": ("/health", "/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 1}),
        "ollama": ("/", "/api/generate", {"model": "qwen2.5:3b", "prompt": "x", "stream": False}),
    }
    health, path, body = work[name]

    def out() -> list[bool]:
        """At the door, at its health URL, at /ready and at /v1/route."""
        reply = host.session.post(host.door(name, path), json=body, timeout=PATIENCE_S)
        gone = reply.status_code == 503 or reply.headers.get("X-Arbiter-Served-By") != name
        url = host.door(name, health)
        well = host.session.get(url, timeout=PATIENCE_S).status_code == 200
        routed = host.get(f"/v1/route?backend={name}").json().get("backend") == name
        return [gone, not well, refused(host, name), not routed]

    began = time.monotonic()
    host.fault(name, close_port=True)
    host.wait(lambda: any(out()), "anybody to notice")
    host.wait(lambda: all(out()), "all to agree")
    print(f"{name}: all agree after {time.monotonic() - began:.2f} s")
    host.fault(name)  # which opens no port: another process does
    old = host.mains()[name]
    assert host.ctl("restart", name).returncode == 0
    host.wait(lambda: host.mains()[name] not in (0, old), "another process")


class _Broken(BaseHTTPRequestHandler):
    """Says that it lives, and answers everything else with an error."""

    def do_GET(self) -> None:
        """Any path."""
        self.send_response(200 if self.path == "/livez" else 500)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def address_string(self) -> str:
        """A unix socket's peer has none."""
        return ""


class _UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Without a port."""
        self.socket.bind(str(self.server_address))


def test_a_gate_that_answers_errors_is_found(host: Host) -> None:
    """It lives, as its own health URL says; what clients get is 500."""
    real = host.home / "run/gateway/gate.sock"
    mine = real.with_name("gate.mine")
    server = _UnixServer(str(mine), _Broken)  # type: ignore[arg-type]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mine.replace(real)
    os.kill(pid_of(host, "gate"), signal.SIGKILL)  # or HAProxy goes on with its open connections
    try:
        told = host.wait_event("door_broken", "ollama")
        assert "HTTP 500" in told["MESSAGE"]
        assert refused(host, "ollama")
        assert not host.events("gateway_down")
    finally:
        real.unlink()
        server.shutdown()
        server.server_close()
    host.wait_ready()


def test_probes_pass_by_slots_queue_and_counters(host: Host) -> None:
    """With every slot taken the way is still seen to be open; what the doors count
    and log does not move by probes.
    """
    body = {"model": MODEL, "prompt": "x", "max_tokens": 400, "stream": True}
    host.fault("vllm", token_s=0.2)

    async def run() -> None:
        async with session() as via:
            url = host.door("vllm", "/v1/completions")
            crowd = [asyncio.create_task(one(via, url, body)) for _ in range(12)]

            def full() -> bool:
                found = host.backend("vllm")
                return bool(found["in_flight"] >= 4 and str(found["reason"]).startswith("full"))

            await asyncio.to_thread(host.wait, full, "a full queue")
            before, let_in = served(host, "probe-vllm"), served(host, "be-vllm")
            more = lambda: served(host, "probe-vllm") >= before + 3  # noqa: E731
            await asyncio.to_thread(host.wait, more, "three more probes")
            assert host.backend("vllm")["in_flight"] >= 4, "every slot is taken"
            assert served(host, "be-vllm") == let_in
            for task in crowd:
                task.cancel()

    asyncio.run(run())
    assert not host.events("door_broken")


def answered(host: Host, name: str) -> int:
    """Good answers that HAProxy has had from this backend."""
    where = host.home / "run/gateway/runtime.sock", host.home / "run/gateway/live.map"
    rows = runtime.look(*where).rows
    return sum(r.number("hrsp_2xx") for r in rows if r.proxy == name and r.name == "BACKEND")


def test_a_shed_door_is_still_probed(host: Host) -> None:
    """Drained: HAProxy has its server in maintenance, probes get their answers all the same."""
    assert host.ctl("drain", "tensorflow").returncode == 0
    live = host.home / "run/gateway/live.map"
    host.wait(lambda: "st:tensorflow shed" in live.read_text(), "the door to be shut")
    url = host.door("tensorflow", "/v1/models/resnet50:predict")
    reply = host.session.post(url, json={"instances": [[0.0]]}, timeout=PATIENCE_S)
    assert reply.status_code == 503
    before = answered(host, "probe-tensorflow")
    host.wait(lambda: answered(host, "probe-tensorflow") >= before + 3, "three more good answers")


def test_ollama_is_probed_by_the_gate_and_not_counted(shared_host: Host) -> None:
    """An idle Ollama: only probes pass its inner door, and none of them is one of its requests."""
    before, let_in = served(shared_host, "probe-ollama"), served(shared_host, "be-ollama")
    through = served(shared_host, "gate")
    shared_host.wait(lambda: served(shared_host, "probe-ollama") >= before + 3, "three probes")
    assert served(shared_host, "gate") >= through + 2, "they pass the gate"
    assert served(shared_host, "be-ollama") == let_in


def test_no_client_can_ask_by_the_probes_header(shared_host: Host) -> None:
    """At a public door the header is nothing: slots and states hold."""
    began = time.monotonic()
    body = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    marked = {"X-Arbiter-Probe": "vllm"}
    vllm = served(shared_host, "probe-vllm")
    url = shared_host.door("ollama", "/api/generate")
    reply = shared_host.session.post(url, json=body, headers=marked, timeout=PATIENCE_S)
    assert reply.status_code == 200
    assert reply.json()["done"] is True, "answered as any request of Ollama's"
    assert served(shared_host, "probe-vllm") - vllm <= time.monotonic() - began + 2


# -- the probes themselves -----------------------------------------------------------------------
class _Strict(BaseHTTPRequestHandler):
    """As a loopback Ollama: 403 with an empty body to a Host that it does not know."""

    known: tuple[str, ...] = ()
    seen: list[str] = []  # noqa: RUF012 - one server per test

    def do_GET(self) -> None:
        """Any path."""
        host = self.headers.get("Host", "")
        type(self).seen.append(host)
        self.send_response(200 if host in type(self).known else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def address_string(self) -> str:
        """A unix socket's peer has none."""
        return ""


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[tuple[type[_Strict], int, Path]]:
    """The same handler on a port and on a unix socket, each knowing what the test says."""
    handler = type("Mine", (_Strict,), {"seen": []})
    path = tmp_path / "probe.sock"
    servers = [
        ThreadingHTTPServer(("127.0.0.1", free_port()), handler),
        _UnixServer(str(path), handler),  # type: ignore[arg-type]
    ]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, servers[0].server_port, path
    for server in servers:
        server.shutdown()
        server.server_close()


def test_both_probes_send_what_the_door_sends(strict: tuple[type[_Strict], int, Path]) -> None:
    """Towards Ollama Host is localhost:PORT, as HAProxy writes it; a refused Host is not ready."""
    handler, port, path = strict
    prober = Prober(lambda: None, path)
    order = ProbeOrder("ollama", f"http://127.0.0.1:{port}", "f", fast=True, canary_due=False)

    def seen() -> HealthObservation | None:
        return prober.latest(time.monotonic()).get("ollama")

    def verdict(door: bool) -> str | None:
        found = seen()
        reading = (found.door if door else found.alive) if found else None
        return (reading.value.verdict.detail or "ok") if isinstance(reading, Known) else None

    try:
        handler.known = (f"localhost:{port}",)
        prober.order((order,), only("ollama"))
        wait_until(lambda: verdict(door=False) == "ok")
        wait_until(lambda: verdict(door=True) == "HTTP 403", what="the way that sends another Host")
        handler.known = ("localhost", f"localhost:{port}")
        wait_until(lambda: verdict(door=True) == "ok")
        handler.known = ("gpu-host",)
        wait_until(lambda: verdict(door=False) == "HTTP 403")
    finally:
        prober.close()
        with suppress(OSError):
            path.unlink()
    assert f"localhost:{port}" in handler.seen
