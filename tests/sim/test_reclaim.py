"""How the stand-ins give memory back, grow and run out of it (facts/engines.md 3.3, 3.4, 4.5, 5.4-5.6)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import requests

from arbiterd.engines import engine_of
from arbiterd.engines.base import CauseClass
from arbiterd.linux import procfs
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Kind
from arbiterd.quantities import GIB, MIB
from tests.sim.test_engines import Bench, _ended, _tensorflow, bench
from tests.support import PATIENCE_S, wait_until

__all__ = ["bench"]
DEV = {"VLLM_SERVER_DEV_MODE": "1"}
ASK = {"model": "M", "prompt": "x", "max_tokens": 2}


def _vllm(bench: Bench, **environ: str) -> subprocess.Popen[str]:
    flags = ("--host", "127.0.0.1", "--port", str(bench.port), "--gpu-memory-utilization", "0.5")
    argv = ("serve", "M", *flags, "--max-model-len", "4096", "--enable-sleep-mode")
    process = bench.start("vllm", *argv, **{**DEV, **environ})
    bench.up("/health")
    return process


def _used(bench: Bench) -> int:
    return bench.gpu.memory(0)[2]


class Asked(threading.Thread):
    """A request in a thread of its own; ``reply`` when it is there."""

    def __init__(self, bench: Bench, path: str, body: object) -> None:
        super().__init__(daemon=True)
        self._ask = (bench, path, body)
        self.reply: requests.Response | None = None
        self.start()

    def run(self) -> None:
        """Ask."""
        bench, path, body = self._ask
        self.reply = bench.ask(path, body, timeout_s=30)

    def done(self) -> requests.Response:
        """Wait for the answer."""
        self.join(30)
        assert self.reply is not None
        return self.reply


def _running(bench: Bench, count: int) -> bool:
    return (
        f'num_requests_running{{engine="0",model_name="M"}} {float(count)}\n'
        in bench.ask("/metrics").text
    )


def _metric(bench: Bench, state: str) -> str:
    text = bench.ask("/metrics").text
    found = re.search(rf'engine_sleep_state{{[^}}]*sleep_state="{state}"}} (\d)', text)
    return found[1] if found else ""


# -- vLLM: pause, sleep, wake -------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/sleep", "/pause", "/resume", "/wake_up"])
def test_development_routes_are_404_without_development_mode(bench: Bench, path: str) -> None:
    """--enable-sleep-mode alone opens none."""
    _vllm(bench, VLLM_SERVER_DEV_MODE="0")
    assert bench.ask(path, {}).status_code == 404


def test_sleep_frees_all_but_a_rest_and_wake_takes_it_again(bench: Bench) -> None:
    """Paused first: 503 meanwhile (0.33). Health is 200 throughout; the metric tells; it computes again."""
    bench.faults(version="0.33.0")
    _vllm(bench)
    before = _used(bench)
    assert bench.ask("/pause?mode=wait", {}).status_code == 200
    assert bench.ask("/sleep?level=1", {}).status_code == 200
    assert GIB - MIB <= _used(bench) <= 2 * GIB
    assert bench.ask("/is_sleeping").json() == {"is_sleeping": True}
    assert bench.ask("/health").status_code == 200
    assert (_metric(bench, "awake"), _metric(bench, "weights_offloaded")) == ("0", "1")
    refused = bench.ask("/v1/completions", ASK)
    assert refused.status_code == 503
    assert "Generation is paused. Please retry after it resumes." in refused.text
    assert bench.ask("/wake_up", {}).json() == {"status": "awake", "tags": None}
    assert _used(bench) == before
    assert _metric(bench, "awake") == "1"
    assert bench.ask("/v1/completions", ASK).status_code == 200, "wake resumes what was paused"


def test_requests_to_a_sleeping_engine_hang_until_it_wakes(bench: Bench) -> None:
    """Not paused first: they are queued, not refused."""
    _vllm(bench)
    assert bench.ask("/sleep", {}).status_code == 200
    asked = Asked(bench, "/v1/completions", ASK)
    wait_until(
        lambda: 'requests_waiting{engine="0",model_name="M"} 1.0' in bench.ask("/metrics").text
    )
    assert asked.reply is None
    assert bench.ask("/wake_up", {}).status_code == 200
    assert asked.done().status_code == 200


@pytest.mark.parametrize(("mode", "finish"), [("wait", "length"), ("abort", "abort")])
def test_pause_awaits_or_aborts_what_runs(bench: Bench, mode: str, finish: str) -> None:
    """Abort: HTTP 200 and finish_reason 'abort', which a client takes for success."""
    bench.faults(token_s=0.1, version="0.33.0")
    _vllm(bench)
    asked = Asked(bench, "/v1/completions", {**ASK, "max_tokens": 12})
    wait_until(lambda: _running(bench, 1))
    assert bench.ask(f"/pause?mode={mode}", {}).status_code == 200
    reply = asked.done()
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["finish_reason"] == finish
    assert bench.ask("/v1/completions", ASK).status_code == 503
    assert bench.ask("/resume", {}).status_code == 200
    assert bench.ask("/v1/completions", ASK).status_code == 200


def test_requests_to_a_paused_0_32_hang_until_it_goes_on(bench: Bench) -> None:
    """Seen on the real one; only 0.33 refuses them."""
    _vllm(bench)
    assert bench.ask("/pause?mode=wait", {}).status_code == 200
    asked = Asked(bench, "/v1/completions", ASK)
    waiting = 'waiting_by_reason{engine="0",model_name="M",reason="deferred"} 1.0'
    wait_until(lambda: waiting in bench.ask("/metrics").text)
    assert asked.reply is None
    assert bench.ask("/resume", {}).status_code == 200
    assert asked.done().status_code == 200


def test_sleep_aborts_what_runs(bench: Bench) -> None:
    """Its default mode; a stream ends with the reason and [DONE]."""
    bench.faults(token_s=0.1)
    _vllm(bench)
    asked = Asked(bench, "/v1/completions", {**ASK, "max_tokens": 100, "stream": True})
    wait_until(lambda: _running(bench, 1))
    assert bench.ask("/sleep?level=1", {}).status_code == 200
    text = asked.done().text
    assert '"finish_reason":"abort"' in text
    assert text.rstrip().endswith("data: [DONE]")


def test_wake_without_room_fails_with_cudas_words(bench: Bench) -> None:
    """HTTP 500; a neighbour sits where it was."""
    process = _vllm(bench)
    assert bench.ask("/sleep?level=1", {}).status_code == 200
    handle = bench.gpu.alloc(0, 20 * GIB, pid=os.getpid())
    failed = bench.ask("/wake_up", {})
    assert failed.status_code == 500
    text = failed.json()["error"]["message"]
    assert text.startswith("Call to wake_up method failed: CUDA Error: out of memory at ")
    bench.gpu.free(handle)
    process.send_signal(signal.SIGTERM)
    _, out = _ended(process)
    found = engine_of(Kind.VLLM).classify(out.splitlines(), Exit(code=0), was_ready=True)
    assert found.cause is CauseClass.ENGINE_DEAD


def test_a_sleep_while_a_neighbour_allocates_leaves_neither_asleep_nor_usable(bench: Bench) -> None:
    """Memory unmapped, not marked asleep, /wake_up does nothing, the next request ends the engine."""
    bench.faults(sleep_s=1.0)
    process = _vllm(bench)
    before = _used(bench)
    asked = Asked(bench, "/sleep?level=1", {})
    wait_until(lambda: _used(bench) < before - 8 * GIB, 10, "its memory to go")
    bench.gpu.alloc(0, before - _used(bench) + GIB, pid=os.getpid())
    failed = asked.done()
    assert failed.status_code == 500
    text = failed.json()["error"]["message"]
    assert text == "Call to sleep method failed: Memory usage increased after sleeping."
    own = dict(bench.gpu.processes(0))
    assert max(size for pid, size in own.items() if pid != os.getpid()) <= 2 * GIB
    assert bench.ask("/is_sleeping").json() == {"is_sleeping": False}
    assert bench.ask("/wake_up", {}).status_code == 200
    assert bench.ask("/health").status_code == 200
    assert bench.ask("/v1/completions", ASK).status_code == 500
    code, out = _ended(process)
    assert code == 0
    assert "illegal memory access" in out
    assert "Executor is not sleeping." in out


def test_a_sleep_may_be_told_to_fail(bench: Bench) -> None:
    """The fault sleep_fails: the same without a neighbour."""
    bench.faults(sleep_fails=True)
    _vllm(bench)
    assert bench.ask("/sleep?level=1", {}).status_code == 500
    assert _used(bench) <= 2 * GIB
    assert bench.ask("/is_sleeping").json() == {"is_sleeping": False}


# -- Ollama: unloading --------------------------------------------------------------------------
def _loaded(bench: Bench, model: str = "llama3.2:1b") -> int:
    bench.ollama()
    bench.up("/api/version")
    assert bench.ask("/api/generate", {"model": model, "keep_alive": -1}).status_code == 200
    return bench.gpu.processes(0)[0][0]


UNLOAD = {"model": "llama3.2:1b", "keep_alive": 0}
WRITE = {"model": "llama3.2:1b", "prompt": "x", "stream": False, "options": {"num_predict": 12}}


def _listed(bench: Bench) -> list[dict[str, object]]:
    found: list[dict[str, object]] = bench.ask("/api/ps").json()["models"]
    return found


def test_an_unload_lets_requests_in_flight_finish(bench: Bench) -> None:
    """Answered at once; the runner goes when the last request has ended, and the bytes with it."""
    bench.faults(token_s=0.1)
    runner = _loaded(bench)
    asked = Asked(bench, "/api/generate", WRITE)
    time_is_up = time.monotonic() + 0.4
    wait_until(lambda: time.monotonic() > time_is_up, 2, "some tokens")
    assert bench.ask("/api/generate", UNLOAD).json()["done_reason"] == "unload"
    assert [row["name"] for row in _listed(bench)] == ["llama3.2:1b"]
    assert procfs.ref(runner) is not None
    assert asked.done().json()["done"] is True
    wait_until(lambda: not _listed(bench) and _used(bench) == 0, 5)


def test_a_new_request_rearms_an_unload_that_has_not_come(bench: Bench) -> None:
    """unload_delay_s: the request comes before; the same runner serves and stays."""
    bench.faults(unload_delay_s=1.0)
    runner = _loaded(bench)
    bench.ask("/api/generate", UNLOAD)
    soon = datetime.fromisoformat(str(_listed(bench)[0]["expires_at"]))
    assert 0 < (soon - datetime.now(UTC)).total_seconds() <= 1.0
    assert bench.ask("/api/generate", {**WRITE, "keep_alive": "10m"}).status_code == 200
    later = datetime.fromisoformat(str(_listed(bench)[0]["expires_at"]))
    assert (later - datetime.now(UTC)).total_seconds() > 500
    bench.faults(unload_delay_s=0.2)
    assert bench.ask("/api/generate", UNLOAD).status_code == 200
    wait_until(lambda: _used(bench) == 0, 5, "now it goes")
    assert procfs.ref(runner) is None


def test_a_stuck_runner_stays_until_it_is_killed_alone(bench: Bench) -> None:
    """'Stopping...' for ever: listed with a past expiry, holding its bytes; new requests wait. The
    kill of that one process clears it and the model is loaded again on demand.
    """
    runner = _loaded(bench)
    bench.faults(unload_ignored=True)
    assert bench.ask("/api/generate", UNLOAD).json()["done_reason"] == "unload"

    def stopping() -> bool:
        row = _listed(bench)[0]
        return datetime.fromisoformat(str(row["expires_at"])) < datetime.now(UTC)

    wait_until(stopping, 5)
    held = _used(bench)
    asked = Asked(bench, "/api/generate", WRITE)
    asked.join(0.5)
    assert asked.reply is None
    assert (_used(bench), procfs.ref(runner) is not None) == (held, True)
    os.kill(runner, signal.SIGKILL)
    assert asked.done().status_code == 200
    again = bench.gpu.processes(0)[0][0]
    assert again != runner


def test_a_runner_that_grows_out_of_the_card_is_loaded_again_on_demand(bench: Bench) -> None:
    """ggml's words, Ollama's words; the server lives."""
    bench.gpu.alloc(0, 20 * GIB, pid=os.getpid())
    process = bench.ollama()
    bench.up("/api/version")
    assert bench.ask("/api/generate", {"model": "llama3.2:1b"}).status_code == 200
    runner = next(pid for pid, _ in bench.gpu.processes(0) if pid != os.getpid())
    bench.faults(grow_mib_per_s=4096)
    wait_until(lambda: procfs.ref(runner) is None, 10, "the runner's end")
    bench.faults()
    assert bench.ask("/api/generate", WRITE).status_code == 200
    process.send_signal(signal.SIGTERM)
    code, out = _ended(process)
    assert code == 0
    assert "cudaMalloc failed: out of memory" in out
    assert "runtime OOM detected; expiring loaded models" in out
    found = engine_of(Kind.OLLAMA).classify(out.splitlines(), None, was_ready=True)
    assert found.cause in (CauseClass.OOM_RUNTIME, CauseClass.OOM_START)


# -- growth -------------------------------------------------------------------------------------
def _rate(bench: Bench, over: int) -> float:
    """MiB a second while it climbs by ``over`` bytes, by the clock of this side."""
    first, began = _used(bench), time.monotonic()
    wait_until(lambda: _used(bench) >= first + over, 20)
    return (_used(bench) - first) / MIB / (time.monotonic() - began)


def test_vllm_leaks_at_a_rate_and_dies_of_it_with_exit_code_zero(bench: Bench) -> None:
    """torch.OutOfMemoryError names what is free; the API server ends with 0 (vllm #48966)."""
    process = _vllm(bench)
    began = _used(bench)
    bench.faults(leak_mib_per_s=1000)
    wait_until(lambda: _used(bench) > began, 5)
    assert 500 < _rate(bench, 2 * GIB) < 1300
    bench.faults()
    wait_until(lambda: _still(bench), 5, "the leak to stop")
    assert _used(bench) > began + 2 * GIB, "a leak does not heal"
    bench.faults(leak_mib_per_s=8192)
    code, out = _ended(process)
    assert code == 0
    assert re.search(
        r"torch\.OutOfMemoryError: CUDA out of memory\. Tried .* of which [\d.]+ .iB is free", out
    )
    found = engine_of(Kind.VLLM).classify(out.splitlines(), Exit(code=0), was_ready=True)
    assert found.cause is CauseClass.OOM_RUNTIME


def _still(bench: Bench) -> bool:
    before = _used(bench)
    later = time.monotonic() + 0.15
    return wait_until(lambda: time.monotonic() > later, 2) and _used(bench) == before


def test_a_leak_stops_where_it_is_told_to(bench: Bench) -> None:
    """leak_max_mib."""
    _vllm(bench)
    before = _used(bench)
    bench.faults(leak_mib_per_s=4096, leak_max_mib=700)
    assert wait_until(lambda: _used(bench) == before + 700 * MIB, 10)


def test_tensorflow_grows_within_its_fraction_and_then_says_429(bench: Bench) -> None:
    """Own pool full with room on the device: the server stays up."""
    _tensorflow(bench, "--per_process_gpu_memory_fraction=0.2", TF_FORCE_GPU_ALLOW_GROWTH="true")
    bench.up("/v1/models/m")
    total, reserved, small, _ = bench.gpu.memory(0)
    assert small == 656 * MIB
    bench.faults(grow_mib_per_s=8192)
    limit = int((total - reserved) * 0.2) + 400 * MIB
    wait_until(lambda: abs(_used(bench) - limit) < 2 * MIB, 10, "the fraction")
    reply = bench.ask("/v1/models/m:predict", {"instances": [1]})
    assert reply.status_code == 429
    assert "OOM when allocating tensor" in reply.json()["error"]
    bench.faults()
    wait_until(lambda: bench.ask("/v1/models/m:predict", {"instances": [1]}).status_code == 200, 5)


@pytest.mark.parametrize("crash", ["", "in_use", "bad_alloc", "cudnn"])
def test_tensorflow_on_a_full_card_warns_or_crashes(bench: Bench, crash: str) -> None:
    """A leak beyond its pool. Some of its ends are aborts."""
    bench.gpu.alloc(0, 18 * GIB, pid=os.getpid())
    process = _tensorflow(bench, "--per_process_gpu_memory_fraction=0.1")
    bench.up("/v1/models/m")
    bench.faults(leak_mib_per_s=8192, oom_crash=crash)
    if not crash:
        wait_until(lambda: bench.gpu.memory(0)[3] < 100 * MIB and _still(bench), 10)
        assert bench.ask("/v1/models/m").status_code == 200
        process.kill()
    code, out = _ended(process)
    assert "CUDA_ERROR_OUT_OF_MEMORY" in out
    assert code == (-signal.SIGABRT if crash else -signal.SIGKILL)
    if crash:
        found = engine_of(Kind.TENSORFLOW).classify(
            out.splitlines(), Exit(signal=6), was_ready=True
        )
        assert found.cause is CauseClass.OOM_RUNTIME, found


def test_gpuctl_ramps_like_a_notebook(bench: Bench) -> None:
    """At its rate, in small steps, up to MAX or the card's end; it lives on and holds what it has."""
    argv = [sys.executable, "-m", "arbiterd.sim.gpuctl", "ramp", "0", "1024"]
    with subprocess.Popen([*argv, "3GiB"], env=bench.env, stdout=subprocess.PIPE, text=True) as one:
        seen = [(time.monotonic(), 0)]
        while seen[-1][1] < 3 * GIB:
            now = _used(bench)
            if now > seen[-1][1]:
                seen.append((time.monotonic(), now))
        assert one.poll() is None
        took = seen[-1][0] - seen[1][0]
        assert 2.0 < took < 30, "3 GiB at 1 GiB/s"
        steps = sorted(b[1] - a[1] for a, b in pairwise(seen))
        assert steps[len(steps) // 2] <= 40 * MIB
        one.send_signal(signal.SIGTERM)
        out, _ = one.communicate(timeout=PATIENCE_S)
    assert "grows by 1.00 GiB/s on GPU 0" in out
    assert "held 3.00 GiB" in out
    wait_until(lambda: _used(bench) == 0, 5)


def test_gpuctl_ramps_to_the_cards_end_and_stays(bench: Bench) -> None:
    """PyTorch's words, and the memory is kept, as a notebook's kernel keeps it."""
    bench.gpu.alloc(0, 22 * GIB, pid=os.getpid())
    argv = [sys.executable, "-m", "arbiterd.sim.gpuctl", "ramp", "0", "4096"]
    with subprocess.Popen(argv, env=bench.env, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        one.stdout.readline()
        assert "torch.OutOfMemoryError: CUDA out of memory. Tried" in one.stdout.readline()
        assert one.poll() is None
        assert dict(bench.gpu.processes(0))[one.pid] > GIB
        one.kill()
    wrong = subprocess.run(
        [*argv[:-2], "7", "1"], env=bench.env, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "gpuctl: no device 7" in wrong.stderr
