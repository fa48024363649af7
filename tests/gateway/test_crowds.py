"""Thousands of slow connections against real doors: who else comes is served, at that door and at the others."""

from __future__ import annotations

import json
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import pytest

from arbiterd.gateway import crowds
from arbiterd.model.settings import Settings
from tests.support.doors import OLLAMA_ANSWERS, VLLM_MODEL, Doors, doors, made, parse

TRUSTED, SLOW, OTHER = "127.0.0.1", "127.0.0.3", "127.0.0.4"
HEALTH = {
    "tensorflow": "/v1/models/m",
    "vllm": "/health",
    "ollama": "/api/version",
    "llm": "/health",
}
MANY = 4000
PATIENCE_S = 60.0  # of a client on a busy machine; what is measured stands in docs/security.md


def many_slots(settings: Settings) -> Settings:
    """vLLM takes 400 requests at a time."""
    backends = dict(settings.active.backends)
    backends["vllm"] = replace(backends["vllm"], max_in_flight=400, max_queue=100)
    return replace(settings, modes={"A": replace(settings.active, backends=backends)})


@pytest.fixture(scope="module")
def wire() -> Iterator[Doors]:
    """This host's other addresses are strangers: 127.0.0.1 alone is trusted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    with doors(made(many_slots), trusted=(TRUSTED,)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        yield one
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def send(one: Doors, door: str, source: str, data: bytes, timeout_s: float = PATIENCE_S) -> bytes:
    """A connection of its own from this address, read to its end."""
    with socket.socket() as client:
        client.settimeout(timeout_s)
        client.bind((source, 0))
        client.connect(("127.0.0.1", one.ports[door]))
        client.sendall(data)
        got = b""
        while part := client.recv(65536):
            got += part
    return got


def status(one: Doors, door: str, path: str, source: str, body: bytes = b"") -> int:
    """Of one request; 0: the connection was refused or cut."""
    method = f"POST {path}" if body else f"GET {path}"
    head = f"{method} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with suppress(ConnectionError):
        return parse(send(one, door, source, head.encode() + body)).status
    return 0


def all_answer(one: Doors, source: str, but: tuple[str, ...] = ()) -> None:
    """Every health URL, and work at each door."""
    work = {
        "tensorflow": ("/v1/models/m:predict", {"instances": [1]}),
        "vllm": ("/v1/completions", {"model": VLLM_MODEL, "prompt": "x"}),
        "llm": ("/v1/completions", {"model": VLLM_MODEL, "prompt": "x"}),
    }
    for door, path in HEALTH.items():
        if door not in but:
            assert status(one, door, path, source) == 200, (door, source)
    for door, (path, body) in work.items():
        if door not in but:
            assert status(one, door, path, source, json.dumps(body).encode()) == 200, (door, source)


@contextmanager
def slow(one: Doors, door: str, sources: list[str], data: bytes) -> Iterator[list[socket.socket]]:
    """One connection from each of these, which sends ``data`` and then nothing more; those still open."""
    with ExitStack() as stack:
        found = []
        for source in sources:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.bind((source, 0))
            client.connect_ex(("127.0.0.1", one.ports[door]))
            found.append(client)
        for client in found:
            with suppress(OSError):
                client.setblocking(True)
                client.settimeout(PATIENCE_S)
                client.sendall(data)
        yield found


def still_open(clients: list[socket.socket]) -> int:
    """Those that the door has not closed."""
    with selectors.DefaultSelector() as ready:
        for client in clients:
            ready.register(client, selectors.EVENT_READ)
        closed = 0
        for key, _ in ready.select(0):
            with suppress(OSError):
                client = key.fileobj  # type: ignore[assignment]
                client.setblocking(False)
                if client.recv(1, socket.MSG_PEEK):
                    continue
            closed += 1
    return len(clients) - closed


HALF = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("data", [HALF, b""], ids=["half a header", "nothing"])
@pytest.mark.parametrize("door", ["vllm", "tensorflow"])
def test_one_source_keeps_its_share_and_no_more(wire: Doors, door: str, data: bytes) -> None:
    """The rest of its connections is reset; everybody else does not notice."""
    with slow(wire, door, [SLOW] * MANY, data) as clients:
        all_answer(wire, OTHER)
        all_answer(wire, TRUSTED)
        assert still_open(clients) <= crowds.SOURCE_MOST + 1
        assert status(wire, "ollama", "/api/version", SLOW) == 0, "its share counts over all doors"


@pytest.mark.timeout(600)
def test_connections_of_this_host_leave_room_for_others(wire: Doors) -> None:
    """A trusted source is not counted; no door takes what belongs to another, or to strangers."""
    with slow(wire, "vllm", [TRUSTED] * MANY, HALF) as clients:
        all_answer(wire, TRUSTED)
        all_answer(wire, OTHER, but=("vllm",))
        assert still_open(clients) > crowds.others_most(wire.layout)


@pytest.mark.timeout(600)
def test_many_sources_fill_one_door_for_strangers_only(wire: Doors) -> None:
    """Forty addresses with a hundred each: this host and routers are still served at that door."""
    sources = [f"127.0.1.{n % 40 + 1}" for n in range(MANY)]
    with slow(wire, "vllm", sources, HALF) as clients:
        all_answer(wire, TRUSTED)
        all_answer(wire, OTHER, but=("vllm",))
        assert still_open(clients) <= crowds.others_most(wire.layout) + 1


@pytest.mark.timeout(600)
def test_slow_bodies_hold_no_slot(wire: Doors) -> None:
    """TensorFlow has four slots; a body that stops coming never gets one, and is 408 in the end."""
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    began = time.monotonic()
    with slow(wire, "tensorflow", [OTHER] * 40, head) as clients:
        all_answer(wire, TRUSTED)
        said = clients[0].recv(65536)
    assert time.monotonic() - began >= crowds.HEADER_S - 1
    assert parse(said).status == 408
    assert "too long to arrive" in parse(said).json["error"]


@pytest.mark.timeout(600)
def test_requests_under_way_are_not_counted(wire: Doors) -> None:
    """Three hundred streams of one stranger: each is a complete request."""
    engine = wire.engines["vllm"]
    engine.gate.clear()
    body = json.dumps({"model": VLLM_MODEL, "prompt": "x"}).encode()
    try:
        with ThreadPoolExecutor(300) as pool:
            asked = [
                pool.submit(status, wire, "vllm", "/v1/completions", OTHER, body)
                for _ in range(300)
            ]
            before = time.monotonic()
            while len(engine.seen) < 1 and time.monotonic() - before < PATIENCE_S:
                time.sleep(0.01)
            assert status(wire, "tensorflow", "/v1/models/m", OTHER) == 200
            engine.gate.set()
            assert {one.result() for one in asked} == {200}
    finally:
        engine.gate.set()
