"""What doors answer themselves, what they open, and what their headers tell."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from arbiterd.engines.tensorflow_serving import METRICS_PATH
from arbiterd.model.gateway import Admit
from arbiterd.model.settings import Failover, Kind, Settings
from tests.core.world import backend
from tests.support import PATIENCE_S, free_port, wait_until
from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, VLLM_MODEL, Doors, doors, made

CHAT = "/v1/chat/completions"
OPENED = {
    "vllm": ("/metrics", "/v1/responses/*", "/tokenizer_info"),
    "tensorflow": ("/monitoring/*",),
}


def opened(base: Settings) -> Settings:
    """Admin paths, a model with a slash, and a generic server that names none."""
    backends = dict(base.active.backends)
    for name, paths in OPENED.items():
        backends[name] = replace(backends[name], allow_admin_paths=paths)
    backends["other"] = backend(
        "other",
        Kind.GENERIC,
        port=free_port(),
        engine_port=free_port(),
        health="/health",
        max_in_flight=2,
    )
    vllm = backends["vllm"]
    backends["vllm"] = replace(vllm, max_in_flight=2)
    rules = (
        *base.failover,
        Failover(OLLAMA_MODEL, "ollama", "vllm"),
        Failover("Org/Model-1B", "vllm", "ollama", "qwen2.5:3b"),
    )
    return replace(base, modes={"A": replace(base.active, backends=backends)}, failover=rules)


@pytest.fixture(scope="module")
def open_doors() -> Iterator[Doors]:
    """Tests leave them as they found them."""
    with doors(made(opened)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        one.engines["vllm"].answers["/v1/models"] = {
            "object": "list",
            "data": [{"id": "M", "object": "model", "created": 17, "owned_by": "vllm"}],
        }
        yield one


@pytest.fixture
def restore(open_doors: Doors) -> Iterator[None]:
    """All up again, nobody away."""
    yield
    open_doors.failover.clear()
    for name in open_doors.engines:
        open_doors.say(name, Admit.UP)


# -- the unified door ------------------------------------------------------------------------------


def test_the_unified_door_lists_and_finds_each_model(open_doors: Doors) -> None:
    """OpenAI's shape, with ``created``; a model by its name, its slash hidden or not."""
    listed = open_doors.ask("llm", "/v1/models").json
    assert listed["object"] == "list"
    rows = {row["id"]: row for row in listed["data"]}
    assert set(rows) == {VLLM_MODEL, "Org/Model-1B", OLLAMA_MODEL}
    assert all(
        isinstance(row["created"], int) and row["object"] == "model" and row["owned_by"]
        for row in rows.values()
    )
    for spelt, name in (
        ("M", "M"), ("Org/Model-1B", "Org/Model-1B"), ("Org%2FModel-1B", "Org/Model-1B"), ("Org%2fModel-1B", "Org/Model-1B"),
        ("qwen2.5:3b", OLLAMA_MODEL), ("qwen2.5%3A3b", OLLAMA_MODEL), ("QWEN2.5:3B", OLLAMA_MODEL),
    ):  # fmt: skip
        assert open_doors.ask("llm", f"/v1/models/{spelt}").json == rows[name]
    missing = open_doors.ask("llm", "/v1/models/nobody")
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")
    assert open_doors.ask("ollama", f"/v1/models/{OLLAMA_MODEL}").json["created"] == 1700000000
    assert open_doors.ask("ollama", "/v1/models/other:1b").status == 404
    assert open_doors.ask("vllm", "/v1/models/M").json["created"] == 17


def test_the_unified_door_speaks_ollamas_small_routes(open_doors: Doors) -> None:
    """What Ollama's clients ask before they begin."""
    assert open_doors.ask("llm", "/").body == b"Ollama is running"
    assert open_doors.ask("llm", "/api/version").json == {"version": "0.33.0"}
    assert open_doors.ask("llm", "/api/ps").json["models"][0]["name"] == OLLAMA_MODEL
    assert OLLAMA_MODEL in [
        one["name"] for one in open_doors.ask("llm", "/api/tags").json["models"]
    ]


def test_they_are_503_while_ollama_is_out(open_doors: Doors, restore: None) -> None:
    """With Retry-After; the list of models stays, since it is the file's."""
    open_doors.say("ollama", Admit.SHED, "restarting")
    for path in ("/api/version", "/api/ps", "/api/tags"):
        reply = open_doors.ask("llm", path)
        assert (reply.status, "restarting" in reply.json["error"]) == (503, True), path
        assert reply.headers["retry-after"]
    assert open_doors.ask("llm", "/v1/models").status == 200


def test_without_an_allow_list_the_unified_door_lists_what_ollama_has() -> None:
    """models = []: with Ollama's own ``created``."""

    def any_model(base: Settings) -> Settings:
        ollama = replace(base.active.backends["ollama"], models=())
        return replace(
            base,
            modes={"A": replace(base.active, backends={**base.active.backends, "ollama": ollama})},
            failover=(),
        )

    with doors(made(any_model)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        rows = {row["id"]: row["created"] for row in one.ask("llm", "/v1/models").json["data"]}
        assert rows.keys() == {"M", OLLAMA_MODEL, "other:1b"}
        assert (rows[OLLAMA_MODEL], rows["other:1b"]) == (1700000000, 1700000001)
        assert one.ask("llm", "/v1/models/other:1b").status == 200


def test_a_host_without_ollama_says_so() -> None:
    """404 for its own API, a greeting that is no lie."""

    def alone(base: Settings) -> Settings:
        return replace(
            base,
            modes={"A": replace(base.active, backends={"vllm": base.active.backends["vllm"]})},
            failover=(),
        )

    with doors(made(alone)) as one:
        assert one.ask("llm", "/").body == b"gpu-arbiter is running"
        for path in ("/api/version", "/api/ps", "/api/tags"):
            assert one.ask("llm", path).status == 404
        assert one.ask("llm", "/v1/models/M").status == 200


# -- lists of a failed-over backend, methods -------------------------------------------------------


@pytest.mark.parametrize("how", [Admit.SHED, Admit.AWAY, Admit.HOLD])
def test_a_failed_over_backend_lists_what_is_served_now(
    open_doors: Doors, restore: None, how: Admit
) -> None:
    """At vLLM's door the models for which Ollama stands in, and the other way round."""
    open_doors.failover.update({("vllm", "M"): "ollama"})
    open_doors.say("vllm", how, "restarting")
    rows = open_doors.ask("vllm", "/v1/models").json["data"]
    assert [(row["id"], row["owned_by"]) for row in rows] == [("M", "ollama")]
    assert open_doors.ask("vllm", "/v1/models/M").json["owned_by"] == "ollama"
    open_doors.failover.clear()
    open_doors.say("vllm", Admit.UP)
    open_doors.failover.update({("ollama", OLLAMA_MODEL): "vllm"})
    open_doors.say("ollama", how, "restarting")
    rows = open_doors.ask("ollama", "/v1/models").json["data"]
    assert [(row["id"], row["owned_by"]) for row in rows] == [(OLLAMA_MODEL, "vllm")]


def test_options_tells_the_methods_of_a_route(open_doors: Doors) -> None:
    """204 with Allow, from the door itself; what is not let through stays 403."""
    for door, path, allow in (
        ("ollama", "/api/chat", "POST, OPTIONS"), ("ollama", CHAT, "POST, OPTIONS"), ("llm", CHAT, "POST, OPTIONS"), ("vllm", CHAT, "POST, OPTIONS"),
        ("llm", "/v1/models", "GET, HEAD, OPTIONS"),
    ):  # fmt: skip
        reply = open_doors.ask(door, path, method="OPTIONS")
        assert (reply.status, reply.headers["allow"]) == (204, allow), (door, path)
    for door, path in (
        ("ollama", "/api/tags"),
        ("vllm", "/v1/models"),
        ("tensorflow", "/v1/models/m:predict"),
    ):
        reply = open_doors.ask(door, path, method="OPTIONS")
        assert (reply.status, "OPTIONS" in reply.headers["allow"]) == (204, True), (door, path)
    for door in ("ollama", "llm", "vllm", "tensorflow"):
        assert open_doors.ask(door, "/nope", method="OPTIONS").status == 403


@pytest.mark.parametrize(
    ("door", "path"),
    [("ollama", "/"), ("ollama", "/api/version"), ("ollama", "/api/tags"), ("ollama", "/api/ps"), ("ollama", "/v1/models"), ("vllm", "/v1/models"),
     ("vllm", "/version"), ("vllm", "/health"), ("llm", "/"), ("llm", "/api/version"), ("llm", "/api/tags"), ("llm", "/api/ps"), ("llm", "/v1/models"),
     ("llm", "/v1/models/M"), ("llm", "/health"), ("tensorflow", "/v1/models"), ("tensorflow", "/v1/models/m/status")],
)  # fmt: skip
def test_head_is_get_without_its_body(open_doors: Doors, door: str, path: str) -> None:
    """Monitors ask so; vLLM itself knows GET only."""
    got, head = (open_doors.ask(door, path, method=method) for method in ("GET", "HEAD"))
    assert (got.status, head.status, head.body) == (200, 200, b"")
    assert (
        head.headers.get("content-length", got.headers["content-length"])
        == got.headers["content-length"]
    )
    assert "HEAD" not in [seen.method for seen in open_doors.engines["vllm"].seen]


# -- what is opened --------------------------------------------------------------------------------


@pytest.mark.parametrize("admit", [Admit.UP, Admit.SHED, Admit.HOLD])
@pytest.mark.parametrize(
    ("door", "path"), [("vllm", "/metrics"), ("tensorflow", METRICS_PATH), ("other", "/metrics")]
)
def test_an_opened_metrics_page_answers_whatever_the_door_does(
    open_doors: Doors, restore: None, door: str, path: str, admit: Admit
) -> None:
    """Drained, held, or full: monitoring takes no slot."""
    open_doors.say(door, admit, "drained by an operator")
    reply = open_doors.ask(door, path)
    assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, door)
    if admit is Admit.SHED and door == "vllm":
        assert open_doors.ask(door, "/tokenizer_info").status == 503
    assert open_doors.ask("llm", "/metrics").status == 403
    assert open_doors.ask("ollama", "/metrics").status == 403


def test_an_opened_prefix_opens_what_is_below_it(open_doors: Doors) -> None:
    """And nothing beside it."""
    for path in (
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/input_items",
        "/v1/responses/resp_1?a=../b",
    ):
        assert open_doors.ask("vllm", path).status == 200, path
    for path in ("/v1/responsesx", "/v1/response/1", "/V1/responses/1", "/tokenizer_info/x"):
        assert open_doors.ask("vllm", path).status == 403, path


@pytest.mark.parametrize("door", ["vllm", "ollama", "tensorflow", "llm", "other"])
@pytest.mark.parametrize(
    "tail",
    ["/../sleep", "/%2e%2e/sleep", "/%2E./sleep", "/.%2e/sleep", "//sleep", "/x/..", "/x%2f..%2fsleep", "/a%2fsleep", "/a%2Fsleep", "/a\\sleep",
     "/a%5csleep", "/a%5Csleep", "/..;/sleep", "/a/%2e/b", "/a%252e%252e"],
)  # fmt: skip
def test_crooked_paths_are_403_at_every_door(open_doors: Doors, door: str, tail: str) -> None:
    """An engine might read them as another route than the door's list does."""
    # a percent sign of its own is straight: no engine decodes twice
    straight = tail == "/a%252e%252e" and door in ("vllm", "other")
    expected = (200,) if straight else (403,)
    before = {name: len(engine.seen) for name, engine in open_doors.engines.items()}
    for method in ("GET", "POST"):
        reply = open_doors.ask(door, f"/v1/responses{tail}", method=method)
        assert reply.status in expected, (method, reply)
    if expected == (403,):
        assert {name: len(engine.seen) for name, engine in open_doors.engines.items()} == before


def test_a_models_slash_may_be_hidden_in_its_list_only(open_doors: Doors) -> None:
    """%2F is let through where the gate answers, and dots not even there."""
    for door in ("llm", "ollama", "vllm"):
        assert open_doors.ask(door, "/v1/models/a%2f..%2fb").status == 403
        assert open_doors.ask(door, "/v1/models/%2e%2e%2fsleep").status == 403
        assert open_doors.ask(door, "/v1/models/a%2Fb").status == 404
    assert open_doors.ask("tensorflow", "/v1/models/a%2Fb").status == 403


def upgrade(one: Doors, door: str, path: str) -> tuple[int, socket.socket]:
    """A websocket's handshake."""
    sock = socket.create_connection(("127.0.0.1", one.ports[door]), timeout=PATIENCE_S)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        part = sock.recv(4096)
        if not part:
            break
        head += part
    return int(head.split()[1]), sock


@pytest.mark.parametrize(("door", "path"), [("vllm", "/v1/responses/ws"), ("other", "/ws")])
def test_websockets_hold_slots_of_their_own(open_doors: Doors, door: str, path: str) -> None:
    """As many as requests may be in flight; the next is 503; requests are not in their way."""
    open_doors.engines[door].gate.clear()
    held = []
    try:
        for _ in range(2):
            status, sock = upgrade(open_doors, door, path)
            held.append(sock)
            assert status == 101
        status, sock = upgrade(open_doors, door, path)
        held.append(sock)
        assert status == 503
        open_doors.engines[door].gate.set()
        assert open_doors.ask(door, path).status == 200
    finally:
        open_doors.engines[door].gate.set()
        for sock in held:
            sock.close()

    def free() -> bool:
        status, sock = upgrade(open_doors, door, path)
        sock.close()
        return status == 101

    wait_until(free, 10, "a slot again")


def test_a_shed_backend_takes_no_new_websocket_and_a_closed_route_none(
    open_doors: Doors, restore: None
) -> None:
    """503 with the reason; the list of routes comes first."""
    status, sock = upgrade(open_doors, "vllm", "/v1/realtime")
    sock.close()
    assert status == 403
    open_doors.say("vllm", Admit.SHED, "drained by an operator")
    status, sock = upgrade(open_doors, "vllm", "/v1/responses/ws")
    sock.close()
    assert status == 503


# -- what the headers tell -------------------------------------------------------------------------


def test_every_answer_says_who_gave_it(open_doors: Doors) -> None:
    """The engine's name, or gpu-arbiter's for what the door says itself; clients cannot forge it."""
    forged = {"X-Arbiter-Served-By": "me", "X-Arbiter-Want": "vllm", "X-Arbiter-Door": "vllm"}
    for door, method, path, body, by in (
        ("vllm", "POST", CHAT, {"model": "M"}, "vllm"), ("llm", "POST", CHAT, {"model": "M"}, "vllm"), ("ollama", "GET", "/", None, "ollama"),
        ("ollama", "POST", "/api/chat", {"model": OLLAMA_MODEL}, "ollama"), ("llm", "POST", "/api/chat", {"model": OLLAMA_MODEL}, "ollama"),
        ("tensorflow", "POST", "/v1/models/m:predict", {}, "tensorflow"), ("other", "GET", "/x", None, "other"),
        ("llm", "GET", "/v1/models", None, "gpu-arbiter"), ("vllm", "GET", "/health", None, "gpu-arbiter"), ("vllm", "GET", "/nope", None, "gpu-arbiter"),
        ("llm", "POST", CHAT, {"model": "nobody"}, "gpu-arbiter"), ("llm", "POST", CHAT, {}, "gpu-arbiter"),
        ("ollama", "POST", "/api/chat", {"model": "nobody"}, "gpu-arbiter"),
    ):  # fmt: skip
        raw = json.dumps(body).encode() if body is not None else b""
        reply = open_doors.ask(door, path, method=method, headers=forged, body=raw)
        assert reply.headers["x-arbiter-served-by"] == by, (door, path, reply)
        assert (
            "x-arbiter-waited-ms" not in reply.headers
            or int(reply.headers["x-arbiter-waited-ms"]) < 1000
        )


@pytest.mark.parametrize(
    ("door", "path", "name"),
    [
        ("vllm", CHAT, "vllm"),
        ("tensorflow", "/v1/models/m:predict", "tensorflow"),
        ("ollama", "/api/chat", "ollama"),
    ],
)
def test_a_request_that_waited_in_the_queue_says_how_long(
    open_doors: Doors, door: str, path: str, name: str
) -> None:
    """Milliseconds, without the engine's own time."""
    engine, model = open_doors.engines[name], {"vllm": "M", "ollama": OLLAMA_MODEL}.get(name, "")
    slots = open_doors.settings.active.backends[name].max_in_flight
    assert open_doors.post(door, path, {"model": model}).status == 200
    before = len(engine.seen)
    with ThreadPoolExecutor(slots + 1) as pool:
        asked = time.monotonic()
        engine.gate.clear()
        try:
            jobs = [
                pool.submit(open_doors.post, door, path, {"model": model}) for _ in range(slots + 1)
            ]
            full = lambda: len([s for s in engine.seen[before:] if s.method == "POST"]) == slots  # noqa: E731
            wait_until(full, 10, "all slots taken")
            wait_until(lambda: time.monotonic() - asked > 0.3, 5, "a wait that can be told")
        finally:
            engine.gate.set()
        replies = [job.result() for job in jobs]
    assert [r.status for r in replies] == [200] * (slots + 1)
    waited = [int(r.headers.get("x-arbiter-waited-ms", 0)) for r in replies]
    late = max(range(slots + 1), key=waited.__getitem__)
    assert waited[late] >= 100
    assert "queue" in replies[late].headers["x-arbiter-why"]
    assert min(waited) < 100, "those that found a slot did not wait, though the engine was slow"


def test_a_held_request_says_so(open_doors: Doors, restore: None) -> None:
    """Why and how long."""
    open_doors.say("tensorflow", Admit.HOLD, "restarting")
    asked = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(open_doors.post, "tensorflow", "/v1/models/m:predict", {})
        wait_until(lambda: time.monotonic() - asked > 0.3, 5, "a wait that can be told")
        open_doors.say("tensorflow", Admit.UP)
        reply = job.result()
    assert reply.status == 200
    assert int(reply.headers["x-arbiter-waited-ms"]) >= 100
    assert reply.headers["x-arbiter-why"] == "hold: tensorflow: restarting"


@pytest.mark.parametrize("door", ["vllm", "llm"])
def test_a_failed_over_answer_says_from_whom_and_why(
    open_doors: Doors, restore: None, door: str
) -> None:
    """Served by the substitute, under the same name."""
    open_doors.failover.update({("vllm", "M"): "ollama"})
    open_doors.say("vllm", Admit.SHED, "restarting after an OOM")
    reply = open_doors.post(door, CHAT, {"model": "M"})
    assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "ollama")
    assert reply.headers["x-arbiter-why"].startswith("failover from vllm: restarting after an OOM")


PAGE = {"Origin": "https://app.example"}
PREFLIGHT = {
    **PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


@pytest.mark.parametrize("state", ["up", "failed over", "out"])
def test_a_page_may_read_what_vllms_door_answers(
    open_doors: Doors, restore: None, state: str
) -> None:
    """As vLLM allows it by default, also where its substitute or the door itself answers for it."""
    if state == "failed over":
        open_doors.failover.update({("vllm", "M"): "ollama"})
    if state != "up":
        open_doors.say("vllm", Admit.SHED, "restarting")
    reply = open_doors.post("vllm", CHAT, {"model": "M"}, headers=PAGE)
    assert reply.status == (503 if state == "out" else 200)
    assert reply.headers["access-control-allow-origin"] == "*"
    asked = open_doors.ask("vllm", CHAT, method="OPTIONS", headers=PREFLIGHT)
    assert asked.status == 200
    assert asked.headers["access-control-allow-origin"] == "*"
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert (
        "access-control-allow-origin" not in open_doors.post("vllm", CHAT, {"model": "M"}).headers
    )


def test_a_vllm_that_names_its_origins_is_obeyed_at_its_door() -> None:
    """--allowed-origins: other pages read nothing, whoever answers."""

    def named(base: Settings) -> Settings:
        backends = dict(base.active.backends)
        words = (*backends["vllm"].command, "--allowed-origins", '["https://app.example"]')
        backends["vllm"] = replace(backends["vllm"], command=words)
        return replace(base, modes={"A": replace(base.active, backends=backends)})

    with doors(made(named)) as one:
        one.say("vllm", Admit.SHED, "restarting")
        reply = one.post("vllm", CHAT, {"model": "M"}, headers=PAGE)
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        other = {"Origin": "https://evil.example"}
        assert (
            "access-control-allow-origin" not in one.post("vllm", CHAT, {}, headers=other).headers
        )


# -- all out ---------------------------------------------------------------------------------------

ASKED = [
    ("tensorflow", "POST", "/v1/models/m:predict", {}), ("tensorflow", "GET", "/v1/models", None), ("vllm", "POST", CHAT, {"model": "M"}),
    ("vllm", "GET", "/v1/models", None), ("vllm", "GET", "/health", None), ("ollama", "POST", "/api/chat", {"model": OLLAMA_MODEL}),
    ("ollama", "POST", CHAT, {"model": OLLAMA_MODEL}), ("ollama", "GET", "/api/tags", None), ("ollama", "GET", "/api/version", None),
    ("ollama", "GET", "/", None), ("llm", "POST", CHAT, {"model": "M"}), ("llm", "POST", CHAT, {"model": OLLAMA_MODEL}),
    ("llm", "POST", "/api/chat", {"model": OLLAMA_MODEL}), ("llm", "GET", "/api/tags", None), ("llm", "GET", "/api/ps", None),
    ("llm", "GET", "/api/version", None), ("llm", "GET", "/health", None), ("other", "GET", "/x", None),
]  # fmt: skip


def patient(given: Settings) -> Settings:
    """As ``opened``; what is held is held for longer than a client of these tests waits for its answer."""
    out = opened(given)
    backends = {n: replace(b, queue_timeout_s=120.0) for n, b in out.active.backends.items()}
    return replace(out, modes={"A": replace(out.active, backends=backends)})


def ask_all(one: Doors, *, told: bool) -> None:
    """503 with Retry-After everywhere; nothing is held, or the client would have no answer at all."""
    for door, method, path, body in ASKED:
        if not told and (door, path) == ("vllm", "/v1/models"):
            continue  # what its substitute would serve, which nobody has found dead yet
        raw = json.dumps(body).encode() if body is not None else b""
        reply = one.ask(door, path, method=method, body=raw)
        assert reply.status == 503, (door, path, reply)
        assert 1 <= int(reply.headers["retry-after"]) <= 120, (door, path)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("state", ["dead", "never_started"])
def test_all_engines_out_is_503_at_every_door(told: bool, state: str) -> None:
    """Whether the daemon has noticed (``told``) or the engines are only not there any more."""
    with doors(made(patient)) as one:
        if state == "dead":
            one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
            assert one.post("ollama", "/api/chat", {"model": OLLAMA_MODEL}).status == 200
            assert one.post("vllm", CHAT, {"model": "M"}).status == 200
        for name, engine in one.engines.items():
            engine.close()
            if told:
                one.say(name, Admit.SHED, "it exited with status 1")
        if not told:
            one.failover.update({("vllm", "M"): "ollama", ("ollama", OLLAMA_MODEL): "vllm"})
            one.tell()
        ask_all(one, told=told)
        ask_all(one, told=told)


def test_engines_nobody_has_told_of_are_out(open_doors: Doors) -> None:
    """An empty map (the daemon has never spoken) sheds."""
    with doors(made(patient)) as one:
        one.wishes.clear()
        one.tell()
        for door, method, path, body in ASKED:
            raw = json.dumps(body).encode() if body is not None else b""
            if (door, path) != ("ollama", "/"):
                assert one.ask(door, path, method=method, body=raw).status == 503, (door, path)


def test_the_gate_does_not_go_round_in_circles() -> None:
    """vLLM's substitute is Ollama and Ollama's is vLLM, both dead and neither noticed."""
    with doors(made(patient)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        one.failover.update(
            {("vllm", "M"): "ollama", ("ollama", OLLAMA_MODEL): "vllm", ("ollama", "M"): "vllm"}
        )
        one.tell()
        assert one.post("vllm", CHAT, {"model": "M"}).status == 200
        one.engines["vllm"].close()
        one.engines["ollama"].close()
        for door in ("vllm", "ollama", "llm"):
            reply = one.post(door, CHAT, {"model": "M"})
            assert reply.status == 503, (door, reply)


def test_without_the_gate_doors_say_503() -> None:
    """It has died: nobody waits for it."""
    with doors(made(patient)) as one:
        os.kill(one.processes[0].pid, signal.SIGKILL)
        one.processes[0].wait()
        for door in ("ollama", "llm"):
            reply = one.post(door, CHAT, {"model": OLLAMA_MODEL})
            assert reply.status == 503
            assert reply.headers["retry-after"]
        assert threading.active_count()
