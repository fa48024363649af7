"""Several backends that serve one model, and adapters that only the engine tells of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from arbiterd.gateway.layout import models, owners
from arbiterd.model.gateway import Admit
from arbiterd.model.settings import Kind, Settings
from tests.core.world import backend
from tests.support import free_port, wait_until
from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, VLLM_MODEL, Doors, doors, made

CHAT = "/v1/chat/completions"
TWO = ("vllm", "vllm-b")


def with_two(given: Settings) -> Settings:
    """A second vLLM of the same model, without failover."""
    mode = given.active
    other = backend(
        "vllm-b", Kind.VLLM, port=free_port(), engine_port=free_port(), max_in_flight=4, max_queue=4,
        queue_timeout_s=3.0,
    )  # fmt: skip
    backends = {**mode.backends, "vllm-b": other}
    return replace(given, modes={"A": replace(mode, backends=backends)}, failover=())


@pytest.fixture(scope="module")
def pair() -> Iterator[Doors]:
    """Two vLLMs and an Ollama."""
    with doors(made(with_two)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        yield one


def served_by(one: Doors, **body: Any) -> str:
    """Which engine answered the unified door."""
    reply = one.post("llm", CHAT, {"model": VLLM_MODEL, "messages": [], **body})
    assert reply.status == 200, reply.body
    return str(reply.headers["x-arbiter-served-by"])


def test_every_backend_of_a_model_is_its_owner_in_the_files_order() -> None:
    """The first one is what /v1/models names."""
    given = with_two(made())
    assert owners(given)[VLLM_MODEL] == TWO
    assert models(given)[VLLM_MODEL] == "vllm"
    assert owners(given)[OLLAMA_MODEL] == ("ollama",)


def test_the_freest_backend_is_chosen(pair: Doors) -> None:
    """Requests that stay spread evenly; the fifth to the eighth too; each engine has its own limit."""
    for name in TWO:
        pair.engines[name].gate.clear()
    before = {name: len(pair.engines[name].seen) for name in TWO}
    threads = []
    try:
        for count in range(1, 9):
            one = threading.Thread(target=served_by, args=(pair,))
            one.start()
            threads.append(one)
            wait_until(
                lambda count=count: (
                    sum(len(pair.engines[n].seen) - before[n] for n in TWO) == count
                ),  # type: ignore[misc]
                30,
                "the request to be in an engine",
            )
        assert [len(pair.engines[name].seen) - before[name] for name in TWO] == [4, 4]
    finally:
        for name in TWO:
            pair.engines[name].gate.set()
        for one in threads:
            one.join(30)


def test_a_backend_that_takes_no_work_is_left_out(pair: Doors) -> None:
    """Each in turn; with both out the door says so, at once."""
    for name, other in (TWO, TWO[::-1]):
        pair.say(name, Admit.SHED, "restarting")
        try:
            assert {served_by(pair) for _ in range(3)} == {other}
        finally:
            pair.say(name, Admit.UP)
    for name in TWO:
        pair.say(name, Admit.SHED, "restarting")
    try:
        reply = pair.post("llm", CHAT, {"model": VLLM_MODEL, "messages": []})
        assert reply.status == 503
        assert "retry-after" in reply.headers
    finally:
        for name in TWO:
            pair.say(name, Admit.UP)


def test_a_body_beyond_the_buffer_goes_to_one_that_takes_work(pair: Doors) -> None:
    """The gate reads the model there."""
    pair.say("vllm", Admit.SHED, "restarting")
    try:
        assert served_by(pair, pad="x" * 200_000) == "vllm-b"
    finally:
        pair.say("vllm", Admit.UP)


def test_an_adapter_is_routed_listed_and_has_no_substitute() -> None:
    """A name that vLLM tells at run time; while it is out, 503 and never Ollama."""
    with doors() as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        one.failover[("vllm", VLLM_MODEL)] = "ollama"
        assert one.post("llm", CHAT, {"model": "sql", "messages": []}).status == 404
        one.adapters["sql"] = "vllm"
        one.tell()
        for pad in ("", "x" * 200_000):
            reply = one.post("llm", CHAT, {"model": "sql", "messages": [], "pad": pad})
            assert (reply.status, reply.headers["x-arbiter-served-by"]) == (200, "vllm")
        assert "sql" in {row["id"] for row in one.ask("llm", "/v1/models").json["data"]}
        one.say("vllm", Admit.AWAY)
        for door in ("llm", "vllm"):
            for pad in ("", "x" * 200_000):
                reply = one.post(door, CHAT, {"model": "sql", "messages": [], "pad": pad})
                assert reply.status != 200 or reply.headers["x-arbiter-served-by"] == "vllm", door
        one.say("vllm", Admit.SHED, "restarting")
        for door in ("llm", "vllm"):
            for pad in ("", "x" * 200_000):
                reply = one.post(door, CHAT, {"model": "sql", "messages": [], "pad": pad})
                assert reply.status == 503, (door, len(pad))
