"""Connections to an engine that are kept for a next request: the door ends them, never the engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace

import aiohttp
import pytest

from arbiterd.engines.vllm import KEEP_ALIVE_S
from arbiterd.model.settings import Settings
from tests.support import wait_until
from tests.support.doors import OLLAMA_ANSWERS, OLLAMA_MODEL, VLLM_MODEL, Doors, doors, made

UVICORN_S = (
    5.0  # its own value: a vLLM that an earlier daemon has started, most servers of kind generic
)
DOORS = {"vllm": VLLM_MODEL, "ollama": OLLAMA_MODEL}
CLIENTS = 16


def _wide(given: Settings) -> Settings:
    backends = {
        name: replace(one, max_in_flight=CLIENTS) for name, one in given.active.backends.items()
    }
    return replace(given, modes={"A": replace(given.active, backends=backends)})


@pytest.fixture
def wire() -> Iterator[Doors]:
    """Doors with room for all clients at once."""
    with doors(made(_wide)) as one:
        one.engines["ollama"].answers.update(OLLAMA_ANSWERS)
        yield one


async def _asks(one: Doors, door: str, pauses: list[list[float]]) -> list[int]:
    """One client per row of ``pauses`` (seconds): a chat after each pause, on a connection of its own that
    it keeps. Statuses; -1: no answer came.
    """

    async def client(waits: list[float]) -> list[int]:
        out = []
        body = {"model": DOORS[door], "messages": [{"role": "user", "content": "x"}]}
        url = f"http://127.0.0.1:{one.ports[door]}/v1/chat/completions"
        async with aiohttp.ClientSession() as session:
            for wait in waits:
                await asyncio.sleep(wait)  # the pause is what is tested
                try:
                    async with session.post(url, json=body) as reply:
                        await reply.read()
                        out.append(reply.status)
                except aiohttp.ClientError:
                    out.append(-1)
        return out

    found = await asyncio.gather(*(client(waits) for waits in pauses))
    return [status for row in found for status in row]


@pytest.mark.parametrize("door", DOORS)
def test_the_door_ends_idle_connections_before_the_engine_does(wire: Doors, door: str) -> None:
    """Fewer connections than requests, and each of them is ended by HAProxy."""
    engine = wire.engines[door]
    engine.idle_s = KEEP_ALIVE_S / 2
    before = engine.connections
    said = asyncio.run(_asks(wire, door, [[0.0] * 20] * CLIENTS))
    assert set(said) == {200}
    assert engine.connections - before < len(said) / 2
    wait_until(lambda: not engine.open, KEEP_ALIVE_S, "no kept connection")
    assert engine.ended_idle == 0


def test_no_request_is_lost_where_the_engine_ends_idle_connections(wire: Doors) -> None:
    """Clients with kept connections that ask again after all kinds of pauses around the engine's time."""
    wire.engines["vllm"].idle_s = UVICORN_S
    dice = random.Random(13)
    rows = [
        [0.0, dice.uniform(0, 3), dice.uniform(UVICORN_S - 1, UVICORN_S + 1)]
        for _ in range(CLIENTS)
    ]
    said = asyncio.run(_asks(wire, "vllm", rows))
    assert said == [200] * len(said)
