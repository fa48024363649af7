"""Streams pass unbuffered and are cut by nothing but their own engine's end."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import aiohttp
import pytest

from arbiterd.gateway import runtime
from tests.gateway.client import Answer, crowd, one, session
from tests.gateway.test_admission import master
from tests.support import wait_until
from tests.support.doors import Doors, doors
from tests.support.host import MODEL, Host

SSE = {"model": MODEL, "prompt": "x", "max_tokens": 20, "stream": True}
NDJSON = {"model": "qwen2.5:3b", "prompt": "x", "stream": True, "options": {"num_predict": 20}}


@pytest.mark.parametrize(
    ("door", "path", "body"),
    [("vllm", "/v1/completions", SSE), ("ollama", "/api/generate", NDJSON), ("llm", "/v1/completions", SSE),
     ("ollama", "/v1/completions", {**SSE, "model": "qwen2.5:3b"})],
)  # fmt: skip
def test_tokens_come_one_by_one(
    shared_host: Host, door: str, path: str, body: dict[str, object]
) -> None:
    """20 tokens at 20 ms: they arrive spread over their time, not in clumps."""
    answer = crowd(shared_host.door(door, path), body, 1)[0]
    assert answer.status == 200
    times = [at for at, _ in answer.chunks]
    assert len(times) >= 5  # a busy client reads several at once
    assert times[-1] - times[0] > 0.2


def test_256_streams_are_held(sim_lib: object, host: Host) -> None:
    """All of them to their last token."""
    text = host.config.read_text().replace("max_in_flight = 4", "max_in_flight = 256")
    host.config.write_text(text)
    assert host.ctl("reload", "--wait=done").returncode == 0
    host.wait_ready()
    limit = host.home / "run/gateway/runtime.sock", host.home / "run/gateway/live.map"
    host.wait(lambda: "lim:be-vllm 256" in runtime.look(*limit).live, "the new limit")
    host.fault("vllm", token_s=0.1)
    answers = crowd(host.door("vllm", "/v1/completions"), SSE, 256, 120)
    assert {a.status for a in answers} == {200}
    assert all(a.body.rstrip().endswith(b"data: [DONE]") for a in answers)


def test_neither_reload_nor_restart_nor_drain_cuts_a_stream(host: Host) -> None:
    """Gateway reload, daemon killed and started, the backend drained: 4 streams to the end."""
    host.fault("vllm", token_s=0.1)
    body = {**SSE, "max_tokens": 60}

    async def run() -> list[Answer]:
        async with session() as via:
            url = host.door("vllm", "/v1/completions")
            streams = [asyncio.create_task(one(via, url, body)) for _ in range(4)]
            await asyncio.sleep(0.5)
            os.kill(master(host), signal.SIGUSR2)
            await asyncio.to_thread(host.kill)
            await asyncio.to_thread(host.start)
            await asyncio.to_thread(host.ctl, "drain", "vllm")
            return list(await asyncio.gather(*streams))

    answers = asyncio.run(run())
    assert {a.status for a in answers} == {200}
    assert all(a.body.rstrip().endswith(b"data: [DONE]") for a in answers)


def test_a_backend_killed_mid_stream_is_told_at_once(host: Host) -> None:
    """The client sees a broken answer within a second, not a finished one, and never hangs."""
    host.fault("vllm", token_s=0.1)

    async def run() -> tuple[list[Answer], float]:
        async with session() as via:
            url = host.door("vllm", "/v1/completions")
            streams = [
                asyncio.create_task(one(via, url, {**SSE, "max_tokens": 100})) for _ in range(4)
            ]
            await asyncio.sleep(0.6)
            os.kill(host.mains()["vllm"], signal.SIGKILL)
            killed = time.monotonic()
            return list(await asyncio.gather(*streams)), time.monotonic() - killed

    answers, took = asyncio.run(run())
    assert took < 9, "one that is not told would go on for the 10 s of its tokens"
    assert all(b"[DONE]" not in a.body for a in answers)
    assert all(a.error or b"error" in a.body for a in answers)


def test_a_runner_killed_mid_stream_reaches_the_client_through_the_gate(host: Host) -> None:
    """Ollama's own error line, or a broken connection: no silent end."""
    host.fault("ollama", token_s=0.1)
    body = {**NDJSON, "options": {"num_predict": 100}}

    async def run() -> Answer:
        async with session() as via:
            stream = asyncio.create_task(one(via, host.door("ollama", "/api/generate"), body))
            await asyncio.sleep(0.6)
            os.kill(host.mains()["ollama"], signal.SIGKILL)
            return await stream

    answer = asyncio.run(run())
    assert answer.error or b'"error"' in answer.body


def test_a_client_that_leaves_frees_its_slot(host: Host) -> None:
    """Also while it waits in the queue: the engine never sees it."""
    host.fault("vllm", token_s=0.1)

    async def run() -> None:
        async with session() as via:
            url = host.door("vllm", "/v1/completions")
            tasks = [
                asyncio.create_task(one(via, url, {**SSE, "max_tokens": 500})) for _ in range(8)
            ]
            await asyncio.sleep(0.7)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    wait_until(lambda: host.backend("vllm")["in_flight"] == 0, 10, "free slots")
    assert host.backend("vllm")["queued"] == 0


def test_a_silent_backend_is_given_up_at_request_timeout(host: Host) -> None:
    """Accepts and says nothing: 504 with Retry-After, and long before that it is out of rotation."""
    text = host.config.read_text()
    text = text.replace(
        "[backends.tensorflow]\n", '[backends.tensorflow]\nrequest_timeout = "1s"\n'
    )
    host.config.write_text(text)
    assert host.ctl("reload", "--wait=done").returncode == 0
    host.wait_ready()
    host.fault("tensorflow", hang=True)
    answer = crowd(host.door("tensorflow", "/v1/models/resnet50:predict"), {"instances": [1]}, 1)[0]
    assert answer.status == 504
    assert answer.retry_after
    assert 0.8 < answer.took_s < 25, "the timeout before the reload was 30 s"


def test_slow_clients_do_not_hold_up_others(shared_host: Host) -> None:
    """Fifty that send a byte and wait: everybody else is served meanwhile."""
    import socket

    slow = []
    try:
        for _ in range(50):
            s = socket.create_connection(("127.0.0.1", shared_host.ports["vllm"]), 2)
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            slow.append(s)
        answer = crowd(shared_host.door("vllm", "/v1/completions"), {**SSE, "max_tokens": 1}, 3)
        assert [a.status for a in answer] == [200] * 3
    finally:
        for s in slow:
            s.close()


def test_what_is_shed_is_refused_at_the_door_at_once(host: Host) -> None:
    """From the daemon's decision (its journal) to the first 503 here, by wall clock, however busy
    the machine is. How many milliseconds: make bench-gateway.
    """
    import datetime as dt

    url = host.door("tensorflow", "/v1/models/resnet50:predict")

    async def first_refusal() -> float:
        async with session() as via:
            drain = asyncio.create_task(asyncio.to_thread(host.ctl, "drain", "tensorflow"))
            while True:
                answer = await one(via, url, {"instances": [1]})
                if answer.status == 503:
                    await drain
                    return time.time()

    at = asyncio.run(first_refusal())
    told = host.wait_event("shed", "tensorflow")["timestamp"]
    decided = dt.datetime.fromisoformat(told).timestamp()
    assert at - decided < 30


@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
def test_a_runner_killed_mid_stream_is_no_clean_end(host: Host, path: str) -> None:
    """Ollama closes such a stream cleanly; through the gate the client sees an error."""
    host.fault("ollama", token_s=0.1)
    body = {"model": "qwen2.5:3b", "prompt": "x", "stream": True, "max_tokens": 200,
            "options": {"num_predict": 200}}  # fmt: skip

    async def run() -> tuple[bytes, bool]:
        got = bytearray()
        async with session() as via, via.post(host.door("ollama", path), json=body) as reply:
            assert reply.status == 200
            try:
                async for chunk in reply.content.iter_any():
                    if not got:  # it streams: now its runner, the newest process, dies
                        os.kill(max(host.backend("ollama")["pids"]), signal.SIGKILL)
                    got += chunk
            except aiohttp.ClientError:
                return bytes(got), False
        return bytes(got), True

    text, clean = asyncio.run(run())
    last = text.rstrip().splitlines()[-1]
    assert b'"done":true' not in last.replace(b" ", b"")
    assert not text.rstrip().endswith(b"[DONE]")
    assert not clean or last.lstrip().startswith(b'{"error"'), text[-200:]


def _workers(one: Doors) -> tuple[int, ...]:
    """() as long as the master does not listen."""
    try:
        return runtime.workers(one.where.master)
    except runtime.GatewayGone:
        return ()


def test_the_master_tells_of_its_workers_and_their_streams() -> None:
    """Its CLI keeps a connection open for another command; asked as we do, it answers to the end."""
    with doors() as one:
        (worker,) = wait_until(
            lambda: _workers(one), 60, "the master, which starts itself anew first"
        )
        assert runtime.look(one.where.runtime, one.where.live).pid == worker
        assert runtime.in_flight_of(one.where.master, worker)["be-vllm/engine"] == 0
        assert runtime.streams_of(one.where.master, (worker, 1)).keys() >= {"be-vllm/engine"}
