"""Limits, queues, shedding: what a crowd sees, and that no limit is ever exceeded."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from arbiterd.gateway import runtime
from tests.gateway.client import Answer, crowd, one, session
from tests.support import PATIENCE_S
from tests.support.host import MODEL, Host

PREDICT = "/v1/models/resnet50:predict"
ROWS = {"instances": [1]}


class Watch:
    """The highest number of streams HAProxy ever had at one engine, sampled as fast as it answers."""

    def __init__(self, host: Host, *names: str) -> None:
        self._socket = host.home / "run/gateway/runtime.sock"
        self._names = names
        self._stop = threading.Event()
        self.peak = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            rows = runtime.stat_rows(runtime.ask(self._socket, "show stat"))
            now = sum(
                r.number("scur") for r in rows if r.name == "engine" and r.proxy in self._names
            )
            self.peak = max(self.peak, now)
            time.sleep(0.005)


def statuses(answers: list[Answer]) -> dict[int, int]:
    """How many of each."""
    out: dict[int, int] = {}
    for answer in answers:
        out[answer.status] = out.get(answer.status, 0) + 1
    return out


def test_a_crowd_gets_200_or_503_with_retry_after_and_the_limit_holds(host: Host) -> None:
    """Bursts far over limit and queue: nobody is lost, nobody hangs."""
    host.fault("vllm", token_s=0.02)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 5}
    answers: list[Answer] = []
    with Watch(host, "be-vllm") as watch:
        for _ in range(5):
            answers += crowd(host.door("vllm", "/v1/completions"), body, 100)
    assert set(statuses(answers)) == {200, 503}, statuses(answers)
    assert all(1 <= int(a.retry_after) <= 120 for a in answers if a.status == 503)
    assert statuses(answers)[200] >= 5 * 12  # four in flight and eight queued, each time
    assert 1 <= watch.peak <= 4


@pytest.mark.parametrize("bursts", [5, pytest.param(20, marks=pytest.mark.every)])
def test_bursts_over_the_limit_are_all_answered(host: Host, bursts: int) -> None:
    """500 each: every request gets 200 or 503 + Retry-After."""
    found: dict[int, int] = {}
    with Watch(host, "be-tensorflow", "be-tensorflow-grpc") as watch:
        for _ in range(bursts):
            answers = crowd(host.door("tensorflow", PREDICT), ROWS, 500)
            assert all(a.retry_after for a in answers if a.status == 503)
            for status, count in statuses(answers).items():
                found[status] = found.get(status, 0) + count
    # 408: this client itself, on a busy machine, took more than 10 s to send a request.
    assert {200, 503} <= set(found) <= {200, 408, 503}, found
    assert sum(found.values()) == bursts * 500
    assert watch.peak <= 4


def test_a_queued_request_gets_503_by_queue_timeout(host: Host) -> None:
    """Three seconds here; the answer says when to come again."""
    host.fault("tensorflow", predict_s=6)
    answers = crowd(host.door("tensorflow", PREDICT), ROWS, 6)
    late = [a for a in answers if a.status == 503]
    assert late
    assert all(2.5 < a.took_s < 30 and a.retry_after for a in late)
    assert "no place became free" in late[0].body.decode()


def test_drain_sheds_at_once_and_cuts_no_stream(host: Host) -> None:
    """A running stream goes on to its last token while new requests get 503."""
    host.fault("vllm", token_s=0.05)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 60, "stream": True}

    async def run() -> tuple[Answer, Answer]:
        async with session() as via:
            stream = asyncio.create_task(one(via, host.door("vllm", "/v1/completions"), body))
            await asyncio.sleep(0.5)
            done = await asyncio.to_thread(host.ctl, "drain", "tensorflow")
            assert done.returncode == 0, done.stderr
            await asyncio.to_thread(host.wait_phase, "tensorflow", "draining")
            refused = await one(via, host.door("tensorflow", PREDICT), ROWS)
            return await stream, refused

    stream, refused = asyncio.run(run())
    assert stream.status == 200
    assert stream.body.rstrip().endswith(b"data: [DONE]")
    assert refused.status == 503
    assert "drained" in refused.body.decode()
    again = host.session.post(host.door("tensorflow", PREDICT), json=ROWS, timeout=PATIENCE_S)
    assert again.headers["X-Arbiter-Advice"] == "llm-only: vllm, ollama"
    health = host.session.get(host.door("tensorflow", "/v1/models"), timeout=PATIENCE_S)
    assert health.status_code == 503
    assert int(health.headers["Retry-After"]) >= 1
    assert host.ctl("resume", "tensorflow").returncode == 0
    host.wait_ready("tensorflow")
    assert crowd(host.door("tensorflow", PREDICT), ROWS, 1)[0].status == 200


def test_the_limit_holds_across_a_reload_by_anybody(host: Host) -> None:
    """Streams of the old worker are subtracted from what the new one may let in."""
    host.fault("vllm", token_s=0.05)
    slow = {"model": MODEL, "prompt": "x", "max_tokens": 60, "stream": True}
    fast = {"model": MODEL, "prompt": "x", "max_tokens": 1}

    async def run() -> tuple[list[Answer], list[Answer], int]:
        url = host.door("vllm", "/v1/completions")
        async with session() as via:
            streams = [asyncio.create_task(one(via, url, slow)) for _ in range(3)]
            await asyncio.sleep(0.5)
            os.kill(master(host), signal.SIGUSR2)
            await asyncio.sleep(0.3)
            later = [asyncio.create_task(one(via, url, fast)) for _ in range(8)]
            peak = 0
            while not all(task.done() for task in streams):
                rows = await asyncio.to_thread(host.backend, "vllm")
                peak = max(peak, rows["in_flight"])
                await asyncio.sleep(0.02)
            return await asyncio.gather(*streams), await asyncio.gather(*later), peak

    streams, later, peak = asyncio.run(run())
    assert all(a.body.rstrip().endswith(b"data: [DONE]") for a in streams)
    assert {a.status for a in later} <= {200, 503}
    assert sum(a.status == 200 for a in later) >= 1
    assert 3 <= peak <= 4


def master(host: Host) -> int:
    """Pid of HAProxy's master."""
    import json

    found = json.loads((host.home / "run/gateway/gateway.pid.json").read_text())
    return int(found["pid"])


def test_haproxy_killed_is_back_with_its_state_within_seconds(host: Host) -> None:
    """Started again by the daemon; limits and states are there with it."""
    old = master(host)
    os.kill(old, signal.SIGKILL)
    host.wait(lambda: master(host) != old, "a new HAProxy")
    door = host.door("tensorflow", PREDICT)
    host.wait(lambda: crowd(door, ROWS, 1)[0].status == 200, "its doors")
    info = runtime.look(host.home / "run/gateway/runtime.sock", host.home / "run/gateway/live.map")
    limits = {f"{r.proxy}/{r.name}": r.number("slim") for r in info.rows if r.name == "engine"}
    assert limits["be-vllm/engine"] == 4


def test_a_hand_at_the_runtime_socket_is_put_right_within_a_tick(host: Host) -> None:
    """Somebody sets a server to maintenance and doubles a limit: both are repaired."""
    socket = host.home / "run/gateway/runtime.sock"
    live = host.home / "run/gateway/live.map"
    runtime.tell(socket, ["set server be-vllm/engine state maint", f"set map {live} st:vllm shed"])
    runtime.tell(socket, ["set maxconn server be-ollama/engine 99"])

    def repaired() -> bool:
        rows = runtime.look(socket, live)
        engines = {r.proxy: r for r in rows.rows if r.name == "engine"}
        return (
            not engines["be-vllm"].values["status"].startswith("MAINT")
            and engines["be-ollama"].number("slim") == 4
            and "st:vllm up" in rows.live
        )

    host.wait(repaired, "the repair", 5)
    assert (
        crowd(
            host.door("vllm", "/v1/completions"),
            {"model": MODEL, "prompt": "x", "max_tokens": 1},
            1,
        )[0].status
        == 200
    )


def test_a_runtime_socket_that_is_gone_is_an_incident_and_cuts_nothing(host: Host) -> None:
    """Somebody cleans up /run: the doors go on as they were told last, and the operator is told what to do."""
    files = host.home / "run/gateway"
    os.kill(master(host), signal.SIGUSR2)  # a reload in the last moment: another worker serves
    (files / "runtime.sock").unlink()
    told = host.wait_event("gateway_down")["MESSAGE"]
    assert "restart gpu-arbiter-gateway" in told
    assert crowd(host.door("tensorflow", PREDICT), ROWS, 1)[0].status == 200
    assert not host.events("port_taken")
    os.kill(master(host), signal.SIGTERM)  # what a restart does
    host.wait_ready()
    assert crowd(host.door("tensorflow", PREDICT), ROWS, 1)[0].status == 200


def test_high_priority_overtakes_the_queue_when_it_is_trusted(host: Host) -> None:
    """X-Priority: high behind eight others is served before them."""
    text = host.config.read_text().replace("[gateway]\n", "[gateway]\ntrust_priority = true\n")
    host.config.write_text(text)
    assert host.ctl("reload", "--wait=done").returncode == 0
    host.wait_ready()
    host.fault("tensorflow", predict_s=0.5)

    async def run() -> tuple[float, list[float]]:
        url = host.door("tensorflow", PREDICT)
        async with session() as via:
            low = [asyncio.create_task(one(via, url, ROWS)) for _ in range(6)]
            await asyncio.sleep(0.2)
            high = await one(via, url, ROWS, headers={"X-Priority": "high"})
            done = time.monotonic()
            others = [(await task, time.monotonic())[1] for task in low]
            assert high.status == 200
            return done, others

    done, others = asyncio.run(run())
    assert done < max(others)


def test_a_taken_port_leaves_out_that_door_only(sim_lib: Path) -> None:
    """The others open, an incident names the holder, and the door opens when the port is free."""
    import shutil
    import socket

    from tests.gateway.conftest import make, write
    from tests.support.host import running

    host = make(sim_lib)
    write(host)
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", host.ports["vllm"]))
        holder.listen(1)
        with running(host):
            host.wait_ready("tensorflow", "ollama")
            host.wait(lambda: host.events("port_taken"), "the incident")
            assert f"pid {os.getpid()}" in host.events("port_taken")[0]["MESSAGE"]
            assert "its door stays shut" in host.backend("vllm")["reason"]
            holder.close()
            host.wait_ready()
            reply = host.session.get(host.door("vllm", "/health"), timeout=PATIENCE_S)
            assert reply.status_code == 200
    shutil.rmtree(host.home, ignore_errors=True)
