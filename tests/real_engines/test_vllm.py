"""A real vLLM on the CPU under the real daemon (`make test-real`). In order, on one daemon: a start
takes half a minute. Figures are printed, for docs/benchmarks.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from arbiterd.linux import procfs
from tests.gateway.client import Answer, crowd
from tests.support import wait_until
from tests.support.host import Host

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_S = 400.0
STREAMED = 160  # tokens: a busy client reads many of them at once


def _figure(text: str, seconds: float) -> None:
    print(f"\nfigure: {text}: {seconds:.1f} s")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, sim_lib: Path) -> Iterator[Host]:
    """The daemon with one backend: a real vLLM that needs no GPU."""
    if not PYTHON.exists():
        pytest.skip("no .venv-vllm here: make test-real builds it")
    home = tmp_path_factory.mktemp("vllm")
    subprocess.run(
        [str(PYTHON), str(ROOT / "tests/real_engines/model.py"), str(home / "tiny")],
        check=True,
        timeout=300,
    )
    one = Host(home, sim_lib, gateway=True)
    backend = f"""
[backends.vllm]
command = ["{PYTHON}", "-m", "vllm.entrypoints.openai.api_server", "--model", "{home}/tiny", "--load-format", "dummy", "--enforce-eager", "--dtype", "bfloat16"]
port = {one.ports["vllm"]}
max_model_len = 256
max_num_seqs = 4
stuck_after = "10s"
drain_timeout = "5s"
restart_delay = "200ms"
env = {{ HF_HUB_OFFLINE = "1", VLLM_CPU_KVCACHE_SPACE = "1", OMP_NUM_THREADS = "1", HOME = "{home}", GPU_SIM_FAULTS = "{home}/none" }}
"""
    one.write('[modes.A]\nvllm = { gpu = "cpu" }', only=(), backends=backend)
    one.start()
    yield one
    one.close()


def _complete(host: Host, tokens: int = 8) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        url = f"http://127.0.0.1:{host.ports['vllm']}/v1/completions"
        body = {
            "model": f"{host.home}/tiny",
            "prompt": "the quick",
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        return session.post(url, json=body, timeout=60)


def _streams(url: str, host: Host, count: int) -> list[Answer]:
    body = {
        "model": f"{host.home}/tiny",
        "prompt": "the quick",
        "max_tokens": STREAMED,
        "ignore_eos": True,
    }
    return crowd(url, {**body, "stream": True}, count)


def _pid(host: Host, part: str) -> int:
    """A process of the backend by a part of its command or name."""

    def find() -> int:
        for pid in host.backend("vllm")["pids"]:
            if part in procfs.command(pid) or part in Path(f"/proc/{pid}/comm").read_text():
                return int(pid)
        return 0

    return wait_until(find, 10, part)


def _back(host: Host, ready: int) -> None:
    host.wait(lambda: len(host.events("ready", "vllm")) >= ready, "vLLM to be back", START_S)
    assert host.backend("vllm")["accepting"]
    assert _complete(host).status_code == 200


def test_it_starts_and_completes(host: Host) -> None:
    """Refused until ready, then a completion with the tokens asked for; its version was found."""
    began = time.monotonic()
    host.wait(lambda: host.backend("vllm")["accepting"], "vLLM to be ready", START_S)
    _figure("start to ready", time.monotonic() - began)
    reply = _complete(host)
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 8
    assert host.backend("vllm")["version"] == "0.32.0"


def test_it_stays_accepting_while_idle_and_while_busy(host: Host) -> None:
    """Canaries come back; counters move under load."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert host.backend("vllm")["accepting"], host.backend("vllm")["reason"]
        assert _complete(host, 64).status_code == 200
    assert host.incidents("vllm") == []


def test_its_tokens_pass_the_doors_unbuffered(host: Host) -> None:
    """Direct, through its door and the unified port: as many chunks, to [DONE]; latency is printed."""
    engine = host.ports["vllm"] + 10000
    ways = {
        "direct": f"http://127.0.0.1:{engine}/v1/completions",
        "door": host.door("vllm", "/v1/completions"),
        "unified port": host.door("llm", "/v1/completions"),
    }
    for name, url in ways.items():
        answers = _streams(url, host, 4)
        assert {a.status for a in answers} == {200}, answers[0].body[:300]
        assert all(a.body.rstrip().endswith(b"data: [DONE]") for a in answers)
        assert all(a.body.count(b"data: ") > STREAMED for a in answers)
        # A tiny model is fast and the machine may be busy: many tokens share a read, at the engine
        # itself as well. Some of them are seen to come in parts.
        assert any(len(a.chunks) > 1 for a in answers), name
        _figure(
            f"{STREAMED} tokens, 4 streams, {name}: the slowest", max(a.took_s for a in answers)
        )


def test_a_killed_api_server_leaves_no_orphan_and_comes_back(host: Host) -> None:
    """EngineCore and Worker outlive it (vllm #55510) until they are found."""
    core = _pid(host, "VLLM::EngineCor")
    main = _pid(host, "api_server")
    pids = host.backend("vllm")["pids"]
    began = time.monotonic()
    os.kill(main, signal.SIGKILL)
    wait_until(lambda: not any(procfs.ref(pid) for pid in pids), 30, "every process to be gone")
    _figure("SIGKILL of the API server to no process left", time.monotonic() - began)
    assert procfs.ref(core) is None
    _back(host, 2)
    _figure("SIGKILL of the API server to serving again", time.monotonic() - began)


def test_a_killed_engine_core_is_an_exit_zero_and_comes_back(host: Host) -> None:
    """The server ends by itself with exit code 0 (vllm #48966): a failure all the same."""
    began = time.monotonic()
    os.kill(_pid(host, "VLLM::EngineCor"), signal.SIGKILL)
    host.wait(lambda: not host.backend("vllm")["accepting"], "to stop accepting", 30)
    _figure("SIGKILL of EngineCore to not accepting", time.monotonic() - began)
    host.wait(lambda: len(host.events("exit", "vllm")) >= 2, "the exit", 60)
    assert "exit code 0" in host.events("exit", "vllm")[-1]["MESSAGE"]
    _back(host, 3)
    _figure("SIGKILL of EngineCore to serving again", time.monotonic() - began)


def test_a_stopped_engine_core_is_noticed(host: Host) -> None:
    """SIGSTOP: /health says 200 all the while; the canary does not come back; it is restarted."""
    began = time.monotonic()
    os.kill(_pid(host, "VLLM::EngineCor"), signal.SIGSTOP)
    host.wait(lambda: host.events("stuck", "vllm"), "to be found stuck", 120)
    assert not host.backend("vllm")["accepting"]
    _figure("SIGSTOP of EngineCore to not accepting", time.monotonic() - began)
    with requests.Session() as session:
        session.trust_env = False
        # the engine's own; its door says 503 by now
        engine = f"http://127.0.0.1:{host.ports['vllm'] + 10000}/health"
        health = session.get(engine, timeout=5)
    assert health.status_code == 200
    assert host.incidents("vllm")[0]["event"] == "stuck"
    _back(host, 4)
    _figure("SIGSTOP of EngineCore to serving again", time.monotonic() - began)


def test_stop_leaves_nothing(host: Host) -> None:
    """SIGTERM to the daemon: drained, ended, exit 0."""
    pids = host.backend("vllm")["pids"]
    began = time.monotonic()
    assert host.stop(60) == 0
    _figure("stop", time.monotonic() - began)
    assert not any(procfs.ref(pid) for pid in pids)
