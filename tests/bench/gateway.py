"""``make bench-gateway``: what the doors cost, side by side with nginx and LiteLLM, in one run.

The real keeper renders and drives the real HAProxy and load gate; the engine is nginx (small JSON) or
tests/bench/gateway_engine.py (streams). CPU is that of the proxy's processes alone. LiteLLM is measured
where LITELLM names its command (pip install 'litellm[proxy]' in a venv of its own).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import requests

from arbiterd.act.gateway.reconciler import GatewayKeeper
from arbiterd.act.gateway.services import GATE, DirectServices
from arbiterd.config import load
from arbiterd.gateway.paths import paths
from arbiterd.linux import procfs
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish
from arbiterd.model.settings import Settings
from arbiterd.sense.gateway_log import GatewayLog
from arbiterd.sim.gpu import build
from tests.bench.gateway_engine import MODEL, TOKENS
from tests.support import free_port, wait_until
from tests.support.host import MODEL as CHAT_MODEL
from tests.support.host import SHARED, Host, running

ROUNDS = 3
SECONDS = 4
NAMES = ("tensorflow", "vllm", "ollama")


class Bench:
    """Engines, doors and rivals in one folder."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="gpua-bench-", dir="/tmp"))
        self.ports = {
            name: free_port() for name in (*NAMES, "grpc", "nginx", "nginx+log", "litellm", "llm")
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.settings = self._settings()
        self.paths = paths(str(self.home / "run"), systemd=False)
        (self.home / "run").mkdir()
        self.log = GatewayLog(self.paths.log)
        self.services = DirectServices(self.paths)
        self.keeper = GatewayKeeper(self.paths, self.services, lambda: None, systemd=False)

    def _settings(self) -> Settings:
        port = self.ports
        text = f"""
mode = "A"
[arbiter]
runtime_dir = "{self.home}/run"
state_dir = "{self.home}/state"
[gateway]
llm_port = {port["llm"]}
[backends.tensorflow]
command = ["tensorflow_model_server"]
models = {{ resnet50 = "/m" }}
port = {port["tensorflow"]}
grpc_port = {port["grpc"]}
max_in_flight = 128
[backends.vllm]
command = ["vllm", "serve", "{MODEL}"]
port = {port["vllm"]}
max_in_flight = 512
[backends.ollama]
command = ["ollama", "serve"]
models = ["{MODEL}"]
port = {port["ollama"]}
max_in_flight = 512
[modes.A]
tensorflow = {{ gpu = 0, memory = "20%" }}
vllm = {{ gpu = 0, memory = "50%" }}
ollama = {{ gpu = 0, memory = "20%" }}
"""
        path = self.home / "bench.toml"
        path.write_text(text)
        return load(path, {}).settings

    def wish(self, admit: Admit = Admit.UP) -> GatewayWish:
        """All up, or TensorFlow otherwise."""
        out = {}
        for name, one in self.settings.active.backends.items():
            mine = admit if name == "tensorflow" else Admit.UP
            up = mine is Admit.UP
            out[name] = BackendWish(
                name, mine, up, "" if up else "bench", 1, 1, one.max_in_flight, 64
            )
        return GatewayWish(out)

    def order(self, admit: Admit = Admit.UP) -> None:
        """As the loop does each tick."""
        self.keeper.order(self.wish(admit), self.settings)

    def start(self) -> None:
        """Engines, doors, nginx; LiteLLM where it is."""
        backends = self.settings.active.backends
        self._nginx(
            "engine",
            f"""
            access_log off; server {{ listen 127.0.0.1:{backends["tensorflow"].engine_port} reuseport backlog=4096;
                location / {{ default_type application/json; return 200 '{{"predictions":[[0.1,0.9]]}}'; }} }}""",
        )
        for name in ("vllm", "ollama"):
            self._spawn(
                name,
                [
                    sys.executable,
                    "-m",
                    "tests.bench.gateway_engine",
                    str(backends[name].engine_port),
                ],
            )
        for rival, log in (("nginx", "off"), ("nginx+log", f"{self.home}/access.log")):
            self._nginx(
                rival,
                f"""
            access_log {log};
            upstream tf {{ server 127.0.0.1:{backends["tensorflow"].engine_port}; keepalive 64; }}
            upstream llm {{ server 127.0.0.1:{backends["vllm"].engine_port}; keepalive 64; }}
            server {{ listen 127.0.0.1:{self.ports[rival]} backlog=4096; proxy_http_version 1.1;
                proxy_set_header Connection ""; proxy_buffering off;
                location /v1/models/ {{ proxy_pass http://tf; }}
                location / {{ proxy_pass http://llm; }} }}""",
            )
        if os.environ.get("LITELLM"):
            self._litellm(os.environ["LITELLM"])
        self.keeper.start()

        def open_() -> bool:
            self.order()
            seen = self.keeper.latest(time.monotonic())
            return not seen.problem and not seen.gate_problem and not seen.opening

        wait_until(open_, 20, "the doors")
        url = f"http://127.0.0.1:{self.ports['ollama']}/api/generate"
        wait_until(
            lambda: _status(url, {"model": MODEL, "prompt": "x"}) == 200, 20, "the gate's way"
        )

    def _nginx(self, name: str, servers: str) -> None:
        path = self.home / f"{name}.conf"
        path.write_text(f"""daemon off; worker_processes 1; pid {self.home}/{name}.pid; error_log /dev/null;
            events {{ worker_connections 8192; }}
            http {{ keepalive_requests 100000000; {servers} }}""")
        self._spawn(name, ["/usr/sbin/nginx", "-c", str(path), "-p", str(self.home)])

    def _litellm(self, command: str) -> None:
        port = self.settings.active.backends["vllm"].engine_port
        model = {
            "model": f"openai/{MODEL}",
            "api_base": f"http://127.0.0.1:{port}/v1",
            "api_key": "x",
        }
        path = self.home / "litellm.json"
        path.write_text(
            json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": model}]})
        )
        self._spawn(
            "litellm",
            [
                command,
                "--config",
                str(path),
                "--port",
                str(self.ports["litellm"]),
                "--host",
                "127.0.0.1",
            ],
        )
        url = f"http://127.0.0.1:{self.ports['litellm']}/v1/chat/completions"
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        wait_until(lambda: _status(url, body) == 200, 120, "LiteLLM")

    def _spawn(self, name: str, argv: list[str]) -> None:
        log = (self.home / f"{name}.log").open("wb")
        keyless = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # loopback only
        env = {**os.environ, **keyless, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        self.processes[name] = subprocess.Popen(
            argv, stdout=log, stderr=log, env=env, cwd=self.home
        )
        log.close()

    def cpu_s(self, what: str) -> float:
        """CPU seconds so far of a proxy and its children."""
        roots = {
            n: [p.pid] for n, p in self.processes.items() if n.startswith(("nginx", "litellm"))
        }
        if what in roots:
            pids = roots[what]
        else:
            names = ["gateway", GATE] if what == "gate" else ["gateway"]
            pids = [
                json.loads((self.paths.files / f"{n}.pid.json").read_text())["pid"] for n in names
            ]
        total = 0.0
        for pid in procfs.pids():
            stat = procfs.stat(pid)
            if stat and (pid in pids or stat.parent in pids):
                total += stat.cpu_s
        return total

    def close(self) -> None:
        """End all of it."""
        self.keeper.stop()
        self.log.close()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)


def _status(url: str, body: object) -> int:
    try:
        with requests.Session() as session:
            session.trust_env = False
            return session.post(url, json=body, timeout=20).status_code
    except requests.RequestException:
        return 0


# -- small JSON -----------------------------------------------------------------------------------
def wrk(
    url: str, connections: int, body: str = "", home: Path | None = None
) -> tuple[float, float]:
    """(requests/s, ms at p50)."""
    script: list[str] = []
    if body and home:
        path = home / "post.lua"
        path.write_text(
            f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['Content-Type']='application/json'\n"
        )
        script = ["-s", str(path)]
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", *script, url],
        capture_output=True,
        text=True,
        check=True,
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    half = re.search(r"50%\s+([\d.]+)(us|ms|s)", done.stdout)
    assert rate, done.stdout
    assert half, done.stdout
    if "Non-2xx" in done.stdout:
        print("   !", url, re.search(r"Non-2xx.*", done.stdout)[0])  # type: ignore[index]
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0}[half[2]]
    return float(rate[1]), float(half[1]) * unit


def small_json(bench: Bench) -> None:
    """GET of a small JSON at TensorFlow's door, 32 connections."""
    path = "/v1/models/resnet50"
    ports = {
        "direct": bench.settings.active.backends["tensorflow"].engine_port,
        "door": bench.ports["tensorflow"],
        "nginx": bench.ports["nginx"],
        "nginx+log": bench.ports["nginx+log"],
    }
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            before = bench.cpu_s(name) if name != "direct" else 0.0
            rate, half = wrk(f"http://127.0.0.1:{port}{path}", 32)
            used = (bench.cpu_s(name) - before) if name != "direct" else 0.0
            rows[name].append((rate, half, used / (rate * SECONDS) * 10_000))
    print(f"\nsmall JSON, 32 connections, median of {ROUNDS} rounds of {SECONDS} s, interleaved")
    print("| way | requests/s | p50 ms | CPU s per 10,000 |\n| --- | --- | --- | --- |")
    for name, found in rows.items():
        rate, half, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {rate:,.0f} | {half:.2f} | {cpu:.2f} |")
    middle = {name: statistics.median(r[0] for r in found) for name, found in rows.items()}
    for rival in ("nginx", "nginx+log"):
        print(f"door / {rival} = {middle['door'] / middle[rival]:.2f}")


def chat(bench: Bench) -> None:
    """POST of a small chat: the door (model read from the body), the gate's way, nginx, LiteLLM."""
    ports = {
        "direct": bench.settings.active.backends["vllm"].engine_port,
        "door": bench.ports["vllm"],
        "gate": bench.ports["ollama"],
        "nginx": bench.ports["nginx"],
    }
    if "litellm" in bench.processes:
        ports["litellm"] = bench.ports["litellm"]
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            before = bench.cpu_s(name) if name != "direct" else 0.0
            rate, half = wrk(f"http://127.0.0.1:{port}/v1/chat/completions", 8, body, bench.home)
            used = (bench.cpu_s(name) - before) if name != "direct" else 0.0
            rows[name].append((rate, half, used / (rate * SECONDS) * 10_000))
    print(f"\nsmall chat (POST), 8 connections, median of {ROUNDS} rounds, engine: aiohttp")
    print("| way | requests/s | p50 ms | CPU s per 10,000 |\n| --- | --- | --- | --- |")
    for name, found in rows.items():
        rate, half, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {rate:,.0f} | {half:.2f} | {cpu:.2f} |")
    if "litellm" in rows:
        ratio = statistics.median(r[0] for r in rows["door"]) / statistics.median(
            r[0] for r in rows["litellm"]
        )
        print(f"door / LiteLLM = {ratio:.0f}")


# -- streams --------------------------------------------------------------------------------------
async def _streams(url: str, body: dict[str, Any], count: int) -> tuple[list[float], int]:
    late: list[float] = []
    whole = 0

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal whole
        got = 0
        async with session.post(url, json=body) as reply:
            async for line in reply.content:
                at = time.time()
                found = re.search(rb'"t": ([\d.]+)', line)
                if found:
                    late.append((at - float(found[1])) * 1000)
                    got += 1
        whole += got == TOKENS

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
    ) as session:
        await asyncio.gather(*(one(session) for _ in range(count)))
    return late, whole


def streams(bench: Bench, count: int) -> None:
    """Token latency: the moment of receipt less the moment the engine sent it, one clock."""
    backends, port = bench.settings.active.backends, bench.ports
    sse = {"model": MODEL, "stream": True, "messages": []}
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "direct": (f"http://127.0.0.1:{backends['vllm'].engine_port}/v1/chat/completions", sse),
        "door": (f"http://127.0.0.1:{port['vllm']}/v1/chat/completions", sse),
        "nginx": (f"http://127.0.0.1:{port['nginx']}/v1/chat/completions", sse),
        "gate": (
            f"http://127.0.0.1:{port['ollama']}/api/generate",
            {"model": MODEL, "prompt": "x", "stream": True},
        ),
    }
    rows: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (url, body) in ways.items():
            before = bench.cpu_s(name) if name != "direct" else 0.0
            late, whole = asyncio.run(_streams(url, body, count))
            used = bench.cpu_s(name) - before if name != "direct" else 0.0
            late.sort()
            rows[name].append(
                (
                    statistics.median(late),
                    late[int(len(late) * 0.99)],
                    used / (count * TOKENS) * 1000,
                    whole,
                )
            )
    print(f"\n{count} streams at 50 tokens/s, median of {ROUNDS} rounds")
    print(
        "| way | token latency p50 ms | p99 ms | CPU s per 1000 tokens | whole |\n| --- | --- | --- | --- | --- |"
    )
    base = statistics.median(row[0] for row in rows["direct"])
    added = {}
    for name, found in rows.items():
        half, tail, cpu = (
            statistics.median(column) for column in list(zip(*found, strict=True))[:3]
        )
        added[name] = half - base
        print(
            f"| {name} | {half:.2f} | {tail:.1f} | {cpu:.3f} | {min(row[3] for row in found)}/{count} |"
        )
    print(
        f"added at p50: door {added['door']:.2f} ms, nginx {added['nginx']:.2f} ms, gate's way {added['gate']:.2f} ms"
    )


# -- shed ----------------------------------------------------------------------------------------
def shed(bench: Bench, rounds: int = 200) -> None:
    """From the order (what the loop hands over) to the end of the first 503."""
    url = f"http://127.0.0.1:{bench.ports['tensorflow']}/v1/models/resnet50"
    took = []
    with requests.Session() as session:
        session.trust_env = False

        def until(status: int, admit: Admit) -> float:
            bench.order(admit)
            began = time.perf_counter()
            while session.get(url, timeout=5).status_code != status:
                if time.perf_counter() - began > 5:
                    msg = f"no {status} within 5 s"
                    raise AssertionError(msg)
            return (time.perf_counter() - began) * 1000

        for _ in range(rounds):
            took.append(until(503, Admit.SHED))
            until(200, Admit.UP)
    took.sort()
    print(
        f"\nshed to effect, {rounds} rounds: p50 {took[rounds // 2]:.1f} ms, p99 {took[int(rounds * 0.99)]:.1f} ms, max {took[-1]:.1f} ms"
    )


# -- Retry-After ---------------------------------------------------------------------------------
def honesty(rounds: int = 3) -> None:
    """What the first 503 promised, and when the door really answered 200 again (stand-ins)."""
    home = Path(tempfile.mkdtemp(prefix="gpua-bench-", dir="/tmp"))
    host = Host(home, build(), gateway=True)
    host.write(SHARED)
    asked = {
        "tensorflow": ("/v1/models/resnet50:predict", {"instances": [1]}),
        "vllm": ("/v1/completions", {"model": CHAT_MODEL, "prompt": "x", "max_tokens": 1}),
        "ollama": (
            "/api/generate",
            {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 1}},
        ),
    }
    print("\nRetry-After against the truth: backend killed, starts made 6 s long (stand-ins)")
    print("| backend | promised s | real s |\n| --- | --- | --- |")
    with running(host):
        host.wait_ready()
        for name in asked:
            host.fault(name, start_delay_s=6)
        for name in [*asked, *(list(asked) * (rounds - 1))]:
            path, body = asked[name]
            os.kill(host.backend(name)["pids"][0], 9)
            promised, told = 0, 0.0
            while True:
                try:
                    reply = host.session.post(host.door(name, path), json=body, timeout=30)
                except requests.ConnectionError:  # it was in the engine that was killed
                    continue
                if reply.status_code == 503 and not told:
                    promised, told = int(reply.headers["Retry-After"]), time.monotonic()
                if reply.status_code == 200 and told:
                    break
                time.sleep(0.02)
            print(f"| {name} | {promised} | {time.monotonic() - told:.1f} |")
            host.wait_ready()
    shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """All of it, or the steps that are named."""
    bench = Bench()
    steps: dict[str, Callable[[], None]] = {
        "json": lambda: small_json(bench),
        "chat": lambda: chat(bench),
        "streams-64": lambda: streams(bench, 64),
        "streams-256": lambda: streams(bench, 256),
        "shed": lambda: shed(bench),
        "honesty": honesty,
    }
    try:
        bench.start()
        for name in sys.argv[1:] or steps:
            steps[name]()
    finally:
        bench.close()


if __name__ == "__main__":
    main()
