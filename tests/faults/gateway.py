"""Faults of HAProxy and the load gate, and clients who mean harm."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import requests

from tests.faults.by_hand import CONT, STOP, Crowd, both, hit, let_go, serves, ticks_go_on, told
from tests.faults.closing import GATE_RSS
from tests.faults.row import Fault
from tests.faults.stage import ASKS, Missing, Stage, until

KIND = "gateway"
_DOORS = "doors are open again at once; engines are not touched"
MIB = 1 << 20


def _row(name: str, inject: Any, promise: str = _DOORS, kind: str = KIND, **more: Any) -> Fault:
    return Fault(f"{kind}-{name}", kind, "direct", inject, promise, **more)


def _master(stage: Stage) -> int:
    return stage.haproxy_pids()[0]


def _worker(stage: Stage) -> int:
    return stage.haproxy_pids()[-1]


def _gate(stage: Stage) -> int:
    return stage.gate_pid()


def _new(which: Any) -> Any:
    """Another process stands in its place."""

    def look(stage: Stage, pid: int) -> None:
        until(lambda: which(stage) not in (0, pid), "another process in its place", 60)

    return look


_TURN = {"x86_64": b"\xeb\xfe", "aarch64": b"\x00\x00\x00\x14"}  # a jump to itself


def _spin(stage: Stage) -> int:
    """Its event loop takes a whole CPU and turns to nothing: where its first thread sleeps in the kernel
    it finds a jump to itself.
    """
    pid = _gate(stage)

    def asleep() -> int:
        words = Path(f"/proc/{pid}/syscall").read_text().split()
        return int(words[-1], 16) if len(words) > 2 else 0

    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(until(asleep, "the load gate to wait for work"))
        memory.write(_TURN[os.uname().machine])
    until(lambda: Path(f"/proc/{pid}/syscall").read_text() == "running\n", "it to spin", 10)
    return pid


def _wake(stage: Stage, pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, CONT)


def _not_ready(stage: Stage, _: Any) -> None:
    """What the door cannot do is not said to work: /ready of Ollama is 503 within 10 s, or its door serves."""

    def honest() -> bool:
        if stage.ask("ollama", 2.0)[0] == 200:
            return True
        return stage.get("/v1/backends/ollama/ready").status_code == 503

    until(honest, "/ready to agree with the door", 15)


def _remove(*names: str) -> Any:
    def inject(stage: Stage) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                (stage.run / "gateway" / name).unlink()

    return inject


def _scribble(name: str, text: bytes) -> Any:
    def inject(stage: Stage) -> None:
        (stage.run / "gateway" / name).write_bytes(text)
        os.kill(
            _master(stage), 10
        )  # SIGUSR1 would end it softly: the worst that another program can do

    return inject


def _restart_by_hand(stage: Stage, _: Any) -> None:
    """As `systemctl restart gpu-arbiter-gateway` would."""
    for pid in stage.haproxy_pids():
        with suppress(ProcessLookupError):
            stage.kill(pid)


def _steal_door(stage: Stage) -> socket.socket:
    """HAProxy dies, and somebody takes vLLM's public port before it is back."""
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for pid in stage.haproxy_pids():
        with suppress(ProcessLookupError):
            stage.kill(pid)

    def bound() -> bool:
        thief.bind(("127.0.0.1", stage.ports["vllm"]))
        return True

    until(bound, "the public port", 20)
    thief.listen(8)
    return thief


# -- clients who mean harm ---------------------------------------------------------------------------
def _slow(door: str, count: int, first: bytes) -> Any:
    return lambda stage: Crowd().fill(stage.ports[door], count, first)


def _neighbours(stage: Stage, _: Any, attacked: str = "") -> None:
    """A neighbour's small request in under 1 s (and the machine's own slowness)."""
    for name in stage.names:
        if name == attacked:
            continue
        began = time.monotonic()
        status, by = stage.ask(name, 15)
        took = time.monotonic() - began
        if status != 200 or took > 5.0:
            msg = f"the door of {name} meanwhile: {status} {by} after {took:.1f} s"
            raise Missing(msg)
    for path in ("/readyz", "/v1/status"):
        assert stage.get(path).status_code == 200


def _bodies(
    door: str,
    bodies: list[bytes],
    headers: dict[str, str],
    path: str = "",
    allowed: tuple[int, ...] = (400, 413, 503),
) -> Any:
    """All at once, a small request beside them every moment; the gate's memory is watched."""

    def inject(stage: Stage) -> None:
        target = stage.door(door, path or ASKS[door][0])
        gate, top, late = stage.gate_pid(), [0], [0.0]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                with suppress(OSError):
                    top[0] = max(top[0], stage.size(gate).rss)
                began = time.monotonic()
                stage.ask("vllm", 20)
                late[0] = max(late[0], time.monotonic() - began)

        def send(body: bytes) -> int:
            try:
                with requests.Session() as session:
                    session.trust_env = False
                    return session.post(target, data=body, headers=headers, timeout=60).status_code
            except requests.RequestException:
                return 0

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(len(bodies)) as pool:
                codes = list(pool.map(send, bodies))
        finally:
            done.set()
            watcher.join()
        wrong = [code for code in codes if code and code not in allowed]
        assert not wrong, f"answers {wrong}"
        assert top[0] < GATE_RSS, f"the gate took {top[0] // MIB} MiB"
        assert late[0] < 10.0, f"a neighbour waited {late[0]:.1f} s"

    return inject


def _json(**values: object) -> bytes:
    return json.dumps(
        {
            "model": "qwen2.5:3b",
            "prompt": "x",
            "stream": False,
            "options": {"num_predict": 1},
            **values,
        }
    ).encode()


def _bomb() -> bytes:
    return gzip.compress(b'{"model":"qwen2.5:3b","prompt":"' + b"a" * (250 * MIB) + b'"}', 9)


class _Lazy:
    """Bodies that cost seconds to make are made when their row is played."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, stage: Stage) -> None:
        self._make()(stage)


def _leave_early(stage: Stage) -> None:
    """Three hundred clients who send half a request, or go before the answer."""
    path, body = ASKS["ollama"]
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
    for number in range(300):
        with socket.socket() as one, suppress(OSError):
            one.settimeout(1)
            one.connect(("127.0.0.1", stage.ports[("ollama", "vllm", "llm")[number % 3]]))
            one.sendall((head + raw)[: (number * 7) % (len(head) + len(raw))] or head)


def _raw(door: str, *requests_: bytes) -> Any:
    """Each is answered 4xx (or cut), and no engine sees it."""

    def inject(stage: Stage) -> None:
        for raw in requests_:
            with socket.socket() as one:
                one.settimeout(15)
                answer = b""
                with suppress(OSError):
                    one.connect(("127.0.0.1", stage.ports[door]))
                    one.sendall(raw)
                    answer = one.recv(4096)
            status = answer.split(b" ")[1] if answer.startswith(b"HTTP/") else b"cut"
            assert status == b"cut" or status.startswith(b"4"), f"{raw[:60]!r}: {answer[:200]!r}"

    return inject


def _post(body: bytes, *more: str, path: str = "/api/generate") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def rows() -> list[Fault]:
    """The table."""
    loads = {"Content-Type": "application/json"}
    zipped = {**loads, "Content-Encoding": "gzip"}
    slow = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    return [
        _row("kill-worker", hit(_worker), tells=("gateway_down|door_broken",)),
        _row("kill-master", hit(_master), tells=()),
        _row("kill-all", lambda s: next(s.kill(p) for p in s.haproxy_pids()), tells=("gateway_down|door_broken",)),
        _row("kill-gate", hit(_gate), seen=_new(_gate), within_s=15.0),
        _row("stop-gate", hit(_gate, STOP), seen=both(_not_ready, _new(_gate)), within_s=20.0, tells=("gateway_down|door_broken",),
             promise="a hung load gate is found by the second probe and replaced within 10 s"),
        _row("spin-gate", _spin, seen=both(_not_ready, _new(_gate)), within_s=20.0, tells=("gateway_down|door_broken",),
             promise="a load gate that takes a whole CPU and answers nothing is replaced within 10 s"),
        _row("stop-worker", hit(_worker, STOP), seen=both(_not_ready, told("gateway_down|door_broken")), undo=_wake, tells=("gateway_down|door_broken",), promise="a hung HAProxy: /ready says 503 while the doors are shut"),
        _row("term-gate", lambda s: s.kill(s.gate_pid(), 15), seen=_new(_gate)),
        _row("hup-haproxy", lambda s: [s.kill(_master(s), 12) for _ in range(20)], promise="twenty reloads by hand: doors stay open"),
        _row("no-runtime-socket", _remove("runtime.sock"), seen=both(serves("vllm", "ollama"), told("gateway_down|door_broken")), undo=_restart_by_hand, tells=("gateway_down|door_broken",),
             promise="its socket's file gone: doors serve on, the journal names the restart that makes it anew"),
        _row("no-live-map", _remove("live.map"), seen=serves("vllm", "ollama")),
        _row("no-config", _remove("haproxy.cfg", "gate.json"), seen=serves("vllm", "ollama")),
        _row("config-scribbled", _scribble("haproxy.cfg", b"\0garbage\n" * 100), promise="a scribbled file is written anew before HAProxy reads it"),
        _row("no-loads-socket", _remove("loads.sock"), seen=serves("vllm")),
        _row("door-stolen", _steal_door, seen=lambda s, _: until(lambda: s.events(s.began, "port_taken"), "port_taken", 60), undo=let_go, tells=("port_taken",),
             promise="the other doors open; the thief is named; the door opens when it is free"),
        _row("slow-4000", _slow("vllm", 4000, slow), kind="client", seen=partial(_neighbours, attacked="vllm"), undo=let_go, promise="4,000 slow connections at one door shut no other"),
        _row("slow-headers", _slow("ollama", 2000, b"POST /api/generate HTTP/1.1\r\nHo"), kind="client", seen=partial(_neighbours, attacked="ollama"), undo=let_go, promise="headers that never end"),
        _row("idle-connections", _slow("llm", 3000, b""), kind="client", seen=_neighbours, undo=let_go, promise="connections without a byte"),
        _row("gzip-bombs", _Lazy(lambda: _bodies("ollama", [_bomb()] * 6, zipped)), kind="client", promise="six gzip bombs: 413, bounded memory, neighbours served"),
        _row("plain-30mib-x16", _Lazy(lambda: _bodies("ollama", [_json(prompt="a" * (30 * MIB))] * 16, loads, allowed=(200, 400, 413, 503))), kind="client",
             promise="sixteen bodies of 30 MiB: some wait, some get 503, memory stays bounded"),
        _row("too-big", _Lazy(lambda: _bodies("ollama", [_json(prompt="a" * (80 * MIB))] * 2, loads, allowed=(413, 503))), kind="client", promise="over max_body: 413"),
        _row("nested-900", _raw("ollama", _post(b'{"model":"qwen2.5:3b","x":' + b"[" * 900 + b"]" * 900 + b"}"), _post(b"[" * 100_000)), kind="client", promise="400, nothing of it reaches an engine"),
        _row("numbers", _raw("ollama", *(_post(b'{"model":"qwen2.5:3b","options":{"num_predict":' + n + b"}}") for n in (b"1e400", b"NaN", b"-Infinity", b"1" * 6000))),
             kind="client", promise="1e400 and NaN: 400"),
        _row("garbage-gzip", _raw("ollama", _post(b"\x1f\x8b" + b"\xff" * 500, "Content-Encoding: gzip"), _post(b"abc", "Content-Encoding: gzip")), kind="client", promise="400"),
        _row("long-header", _raw("ollama", _post(b"{}", "X-Long: " + "a" * 8300), _post(b"{}", "X-Long: " + "a" * 60_000)), kind="client", promise="400, 413 or 431 in the API's shape"),
        _row("bad-framing", _raw("vllm", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
                                 b"\0\1\2\3" * 100 + b"\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n"), kind="client", promise="cut or 400"),
        _row("leave-early", _leave_early, kind="client", seen=ticks_go_on(1.0), promise="three hundred clients who go: nothing is left in flight"),
    ]  # fmt: skip
