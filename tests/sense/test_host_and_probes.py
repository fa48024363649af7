"""Probes against real sockets, host facts against the real host."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arbiterd.model.health import HealthObservation, HttpProbe, ProbeOrder
from arbiterd.model.reading import Known, Unknown
from arbiterd.model.settings import Kind
from arbiterd.sense.health import Prober
from arbiterd.sense.host import HostFactsSource, look
from arbiterd.sense.http import BODY_LIMIT, ask, session
from tests.core.world import backend, only
from tests.support import free_port, wait_until


class Engine(BaseHTTPRequestHandler):
    """Answers what the test sets."""

    status = 200
    body = b""
    delay_s = 0.0
    asked: list[str] = []  # noqa: RUF012 - one server per test

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def do_GET(self) -> None:
        """Any path."""
        type(self).asked.append(self.path)
        time.sleep(type(self).delay_s)
        with suppress(ConnectionError):
            self._answer()

    def _answer(self) -> None:
        self.send_response(type(self).status)
        self.send_header("Content-Length", str(len(type(self).body)))
        self.end_headers()
        self.wfile.write(type(self).body)

    do_POST = do_GET  # noqa: N815


@pytest.fixture
def engine() -> Iterator[tuple[type[Engine], str]]:
    """A server of this test's own and its URL."""
    handler = type("Mine", (Engine,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_reply_carries_status_body_and_latency(engine: tuple[type[Engine], str]) -> None:
    """Plain."""
    handler, url = engine
    handler.body = b"hello"
    with session() as via:
        reply = ask(via, url, HttpProbe("GET", "/x"))
    assert (reply.status, reply.body, reply.error) == (200, "hello", "")


def test_no_answer_has_a_word_for_the_reason(engine: tuple[type[Engine], str]) -> None:
    """Refused and slow are different things."""
    handler, url = engine
    handler.delay_s = 2.0
    with session() as via:
        slow = ask(via, url, HttpProbe("GET", "/", timeout_s=0.2))
        gone = ask(via, f"http://127.0.0.1:{free_port()}", HttpProbe("GET", "/"))
    assert slow.error == "no answer within 0.2 s"
    assert gone.error == "connection refused"


def test_a_flood_is_cut(engine: tuple[type[Engine], str]) -> None:
    """At most a little over BODY_LIMIT is read."""
    handler, url = engine
    handler.body = b"x" * (3 * BODY_LIMIT)
    with session() as via:
        reply = ask(via, url, HttpProbe("GET", "/", timeout_s=10))
    assert len(reply.body) <= BODY_LIMIT + 65536


def test_proxies_of_the_environment_are_not_asked(
    engine: tuple[type[Engine], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine on loopback is nobody else's business."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with session() as via:
        assert ask(via, engine[1], HttpProbe("GET", "/")).status == 200


def _order(url: str, fence: str = "f1", *, canary: bool = False) -> ProbeOrder:
    return ProbeOrder("vllm", url, fence, fast=True, canary_due=canary)


def _health(prober: Prober) -> HealthObservation | None:
    return prober.latest(time.monotonic()).get("vllm")


def test_a_prober_follows_its_orders(engine: tuple[type[Engine], str]) -> None:
    """Results grow, a new fence forgets them, no order ends the probing, on_change wakes the loop."""
    _, url = engine
    woken = threading.Event()
    settings = only("vllm")
    before = set(threading.enumerate())
    prober = Prober(woken.set)
    try:
        prober.order((_order(url),), settings)
        asking = set(threading.enumerate()) - before
        assert asking

        def alive() -> bool:
            found = _health(prober)
            return bool(found and isinstance(found.alive, Known) and found.alive.value.verdict.ok)

        wait_until(alive, 5)
        assert woken.is_set()
        prober.order((_order(url, "f2"),), settings)
        found = _health(prober)
        assert found is not None
        assert isinstance(found.alive, Unknown) or found.alive.value.seq > 1
        prober.order((), settings)
        assert _health(prober) is None
        asking |= set(threading.enumerate()) - before
        probing = {one for one in asking if one.name.startswith("probe-")}
        assert probing
        wait_until(lambda: not any(one.is_alive() for one in probing), 60)
    finally:
        prober.close()


def test_one_canary_is_out_at_a_time(engine: tuple[type[Engine], str]) -> None:
    """A hung engine is not buried in canaries."""
    handler, url = engine
    settings = only("vllm")
    prober = Prober(lambda: None)
    try:
        prober.order((_order(url),), settings)
        wait_until(lambda: _health(prober), 5)
        handler.delay_s = 1.0
        for _ in range(5):
            prober.order((_order(url, canary=True),), settings)
        wait_until(lambda: handler.asked.count("/v1/completions") == 1, 5)
        time.sleep(0.3)
        assert handler.asked.count("/v1/completions") == 1
    finally:
        handler.delay_s = 0.0
        prober.close()


def test_a_taken_port_is_named_with_its_holder() -> None:
    """Pid and command; a process of ours is no stranger."""
    port = free_port()
    one = replace(backend("vllm", Kind.VLLM), port=port, command=("/bin/sh", "serve", "M"))
    base = only("vllm")
    mode = replace(base.active, backends={"vllm": one})
    off = replace(base.gateway, enabled=False)
    settings = replace(base, modes={"A": mode}, gateway=off)
    assert look(settings, lambda _pid: None).taken_ports == {}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        found = look(settings, lambda _pid: None).taken_ports["vllm"]
        assert f"port {port} is taken by pid {os.getpid()}" in found
        assert look(settings, lambda _pid: ("vllm", "unit")).taken_ports == {}


def test_the_port_of_an_engine_that_has_ended_is_looked_at_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has taken it meanwhile is known before the breaker opens, not at the next regular look."""
    monkeypatch.setattr("arbiterd.sense.host.EVERY_S", 3600.0)
    port = free_port()
    one = replace(backend("vllm", Kind.VLLM), port=port, command=("/bin/sh", "serve", "M"))
    base = only("vllm")
    mode = replace(base.active, backends={"vllm": one})
    settings = replace(base, modes={"A": mode}, gateway=replace(base.gateway, enabled=False))
    facts = HostFactsSource(lambda _pid: None)
    try:
        facts.refresh(settings)
        wait_until(lambda: facts.fresh)
        assert facts.latest(frozenset({"vllm"})).taken_ports == {}
        with socket.socket() as thief:
            thief.bind(("127.0.0.1", port))
            thief.listen()
            assert facts.latest(frozenset({"vllm"})).taken_ports == {}
            wait_until(lambda: "vllm" in facts.latest(frozenset()).taken_ports)
        wait_until(lambda: not facts.latest(frozenset()).taken_ports)
    finally:
        facts.close()


@pytest.mark.parametrize("then", ["seen", "gone"])
def test_a_listener_that_cannot_be_seen_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """By the next look, though the same sockets listen: one look may fall between two holders, or upon an
    engine that is dying. Then it listens no more: nobody has the port.
    """
    monkeypatch.setattr("arbiterd.sense.host.EVERY_S", 3600.0)
    seen: list[int | None] = [None]
    monkeypatch.setattr(
        "arbiterd.sense.host.holders", lambda ports: [(port, seen[-1]) for port in ports]
    )
    port = free_port()
    one = replace(backend("vllm", Kind.VLLM), port=port, command=("/bin/sh", "serve", "M"))
    base = only("vllm")
    mode = replace(base.active, backends={"vllm": one})
    settings = replace(base, modes={"A": mode}, gateway=replace(base.gateway, enabled=False))
    with socket.socket() as engine:
        engine.bind(("127.0.0.1", port))
        engine.listen()
        facts = HostFactsSource(lambda pid: ("vllm", "unit") if pid == 7 else None)
        try:
            facts.refresh(settings)
            wait_until(lambda: "vllm" in facts.latest().taken_ports)
            if then == "seen":
                seen.append(7)
            else:
                engine.close()
            wait_until(lambda: not facts.latest().taken_ports)
        finally:
            facts.close()


def test_missing_commands_say_what_to_do() -> None:
    """Not there, or there and not executable."""
    base = only("vllm")
    for command, wanted in (
        (("/nowhere/x", "serve", "M"), "is not there"),
        (("/etc/passwd", "serve", "M"), "not executable"),
    ):
        one = replace(backend("vllm", Kind.VLLM), command=command)
        settings = replace(base, modes={"A": replace(base.active, backends={"vllm": one})})
        assert wanted in look(settings, lambda _pid: None).missing_commands["vllm"]
