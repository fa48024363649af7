"""The stand-ins keep the real engines' contracts (docs/facts/engines.md): flags, texts, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from arbiterd.linux import procfs
from arbiterd.quantities import GIB, MIB
from arbiterd.sim.gpu import SimGpu
from tests.support import PATIENCE_S, free_port, wait_until


@dataclass
class Bench:
    """Starts stand-ins on the simulated card."""

    gpu: SimGpu
    env: dict[str, str]
    home: Path
    port: int
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, engine: str, *argv: str, **environ: str) -> subprocess.Popen[str]:
        """One engine; output is kept for ``ended``."""
        made = subprocess.Popen(
            [sys.executable, "-m", f"arbiterd.sim.engines.{engine}", *argv],
            env={**self.env, "GPU_SIM_FAULTS": str(self.home / "faults.json"), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(made)
        return made

    def faults(self, **values: object) -> None:
        """What shall go wrong."""
        (self.home / "faults.json").write_text(json.dumps(values))

    def vllm(self, *argv: str, utilisation: str = "0.5") -> subprocess.Popen[str]:
        """vLLM with the flags the arbiter gives it."""
        flags = (
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--gpu-memory-utilization",
            utilisation,
        )
        return self.start("vllm", "serve", "M", *flags, "--max-model-len", "4096", *argv)

    def ollama(self, **environ: str) -> subprocess.Popen[str]:
        """Ollama, limited by environment."""
        return self.start("ollama", "serve", OLLAMA_HOST=f"127.0.0.1:{self.port}", **environ)

    def ask(self, path: str, body: object = None, timeout_s: float = 20) -> requests.Response:
        """GET, or POST when there is a body."""
        with requests.Session() as session:
            session.trust_env = False
            url = f"http://127.0.0.1:{self.port}{path}"
            if body is None:
                return session.get(url, timeout=timeout_s)
            return session.post(url, json=body, timeout=timeout_s)

    def up(self, path: str, status: int = 200) -> None:
        """Until it answers so."""

        def there() -> bool:
            try:
                return self.ask(path).status_code == status
            except requests.ConnectionError:
                return False

        wait_until(there, 20, path)


@pytest.fixture
def bench(gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path) -> Iterator[Bench]:
    """A card, a port; everything started is killed with its whole session."""
    one = Bench(gpu, sim_env, tmp_path, free_port())
    yield one
    for process in one.started:
        for pid in procfs.pids():
            found = procfs.stat(pid)
            if found is not None and found.session == process.pid and found.alive:
                os.kill(pid, signal.SIGKILL)
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out


# -- vLLM ---------------------------------------------------------------------------------------
def test_vllm_refuses_to_start_without_the_free_memory_it_wants(bench: Bench) -> None:
    """Total x utilisation against free: its own sentence, then the wrapper, exit 1."""
    bench.gpu.alloc(0, 16 * GIB, pid=os.getpid())
    code, out = _ended(bench.vllm(utilisation="0.9"))
    assert code == 1
    assert "on startup is less than desired GPU memory utilization (0.9, " in out
    assert out.strip().endswith("Failed core proc(s): {'EngineCore': 1}")


def test_vllm_asserts_that_nobody_frees_memory_while_it_profiles(bench: Bench) -> None:
    """A neighbour that gives memory back during its start kills it."""
    bench.faults(load_s=2.0)
    handle = bench.gpu.alloc(0, 4 * GIB, pid=os.getpid())
    process = bench.vllm()
    wait_until(lambda: bench.gpu.memory(0)[2] > 5 * GIB, 10, "its weights to come")
    bench.gpu.free(handle)
    code, out = _ended(process)
    assert code == 1
    assert "Error in memory profiling. Initial free memory" in out


def test_vllm_is_charged_for_what_a_neighbour_takes_meanwhile(bench: Bench) -> None:
    """No assertion: its KV cache shrinks (vllm #55827)."""
    bench.faults(load_s=2.0)
    process = bench.vllm()
    wait_until(lambda: bench.gpu.memory(0)[2] > GIB, 10)
    bench.gpu.alloc(0, 2 * GIB, pid=os.getpid())
    bench.up("/health")
    process.send_signal(signal.SIGTERM)
    _, out = _ended(process)
    assert "Available KV cache memory: 2.56 GiB" in out or "Available KV cache memory: 2.5" in out


@pytest.mark.parametrize(
    ("faults", "argv", "text"),
    [
        ({"weights_bytes": 12 * GIB}, (), "No available memory for the cache blocks."),
        (
            {"weights_bytes": 10 * GIB},
            ("--max-model-len", "100000"),
            "the estimated maximum model length is",
        ),
        ({"weights_bytes": 30 * GIB}, (), "CUDA out of memory. Tried to allocate"),
    ],
)
def test_vllm_says_what_its_budget_lacks(
    bench: Bench, faults: dict[str, Any], argv: tuple[str, ...], text: str
) -> None:
    """No room for a cache, for one request, for the weights."""
    bench.faults(load_s=0.1, **faults)
    code, out = _ended(bench.vllm(*argv))
    assert code == 1
    assert text in out


def test_vllm_knows_its_flags_and_no_others(bench: Bench) -> None:
    """argparse's own words, exit 2."""
    code, out = _ended(bench.start("vllm", "serve", "M", "--no-such-flag"))
    assert code == 2
    assert "unrecognized arguments: --no-such-flag" in out


def test_vllm_is_a_server_with_a_core_that_holds_the_memory(bench: Bench) -> None:
    """Refused until ready; the card's process is EngineCore; it outlives a killed server."""
    process = bench.vllm()
    with pytest.raises(requests.ConnectionError):
        bench.ask("/health")
    bench.up("/health")
    pid, used = bench.gpu.processes(0)[0]
    assert Path(f"/proc/{pid}/comm").read_text().strip() == "VLLM::EngineCor"
    assert used > 10 * GIB
    process.kill()
    process.wait(10)
    assert procfs.ref(pid) is not None
    assert bench.gpu.processes(0)[0][0] == pid


def test_vllm_ends_with_zero_when_its_core_dies(bench: Bench) -> None:
    """503 on /health first."""
    process = bench.vllm()
    bench.up("/health")
    os.kill(bench.gpu.processes(0)[0][0], signal.SIGKILL)
    code, out = _ended(process)
    assert code == 0
    assert "EngineDeadError" in out


def test_vllm_refuses_when_its_queue_is_full(bench: Bench) -> None:
    """--max-num-queued-reqs bounds what is in flight. Streams that come in the same moment: those that
    are not taken get 503, or 200 with the error as their only event before [DONE].
    """
    bench.faults(token_s=0.2)
    bench.vllm("--max-num-seqs", "4", "--max-num-queued-reqs", "2")
    bench.up("/health")
    body = {"model": "M", "prompt": "x", "max_tokens": 20, "stream": True}
    replies: list[requests.Response] = []
    threads = [
        threading.Thread(target=lambda: replies.append(bench.ask("/v1/completions", body)))
        for _ in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served = [one for one in replies if '"finish_reason":"length"' in one.text]
    refused = [one for one in replies if one not in served]
    assert (len(served), len(refused)) == (2, 7)
    for one in refused:
        assert "currently busy" in one.text
        assert "Retry-After" not in one.headers
        if one.status_code == 200:
            assert one.text.count("data: ") == 2
            assert one.text.endswith("data: [DONE]\n\n")
    assert {one.status_code for one in refused} <= {200, 503}, "which, the moment decides"
    assert bench.ask("/v1/completions", {"model": "other"}).status_code == 404


def test_vllm_lists_its_lora_modules_with_their_parent(bench: Bench) -> None:
    """After the served names; asked for, its own name answers, else the first served one."""
    loras = ("--enable-lora", "--lora-modules", "sql=/srv/sql", '{"name": "b", "path": "/srv/b"}')
    bench.vllm("--served-model-name", "one", "two", *loras)
    bench.up("/health")
    rows = bench.ask("/v1/models").json()["data"]
    assert [(row["id"], row["root"], row["parent"]) for row in rows] == [
        ("one", "M", None),
        ("two", "M", None),
        ("sql", "/srv/sql", "one"),
        ("b", "/srv/b", "one"),
    ]
    answered = {
        asked: bench.ask("/v1/completions", {"model": asked, "prompt": "x"}).json()["model"]
        for asked in ("one", "two", "sql")
    }
    assert answered == {"one": "one", "two": "one", "sql": "sql"}


def test_vllm_that_lingers_stays_idle_for_its_whole_shutdown_timeout(bench: Bench) -> None:
    """As 0.32 on the CPU does; new work gets 500 meanwhile, /health says 200."""
    bench.faults(lingers=True)
    process = bench.vllm("--shutdown-timeout", "600")
    bench.up("/health")
    process.send_signal(signal.SIGTERM)
    body = {"model": "M", "prompt": "x", "max_tokens": 1}
    wait_until(lambda: bench.ask("/v1/completions", body).status_code == 500, 10)
    assert bench.ask("/health").status_code == 200
    assert process.poll() is None


def test_vllm_streams_chat_as_events(bench: Bench) -> None:
    """Deltas, then [DONE]."""
    bench.vllm()
    bench.up("/health")
    body = {
        "model": "M",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 3,
        "stream": True,
    }
    lines = [line for line in bench.ask("/v1/chat/completions", body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0][6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert json.loads(lines[1][6:])["choices"][0]["delta"]["content"]
    assert "vllm:generation_tokens_total" in bench.ask("/metrics").text


# -- TensorFlow Serving -------------------------------------------------------------------------
def _tensorflow(bench: Bench, *argv: str, **environ: str) -> subprocess.Popen[str]:
    (bench.home / "m" / "1").mkdir(parents=True, exist_ok=True)
    flags = (f"--rest_api_port={bench.port}", f"--port={free_port()}", "--model_name=m")
    return bench.start("tensorflow", *flags, f"--model_base_path={bench.home}/m", *argv, **environ)


def test_tensorflow_takes_its_fraction_at_once(bench: Bench) -> None:
    """Total x fraction and a context; growth takes little first."""
    _tensorflow(bench, "--per_process_gpu_memory_fraction=0.25")
    bench.up("/v1/models/m")
    total, reserved, used, _ = bench.gpu.memory(0)
    assert abs(used - (total - reserved) * 0.25 - 400 * MIB) < 2 * MIB


def test_tensorflow_takes_less_when_there_is_less(bench: Bench) -> None:
    """Times 0.9 until it fits; not fatal."""
    bench.gpu.alloc(0, 16 * GIB, pid=os.getpid())
    process = _tensorflow(bench, "--per_process_gpu_memory_fraction=0.5")
    bench.up("/v1/models/m")
    process.send_signal(signal.SIGTERM)
    code, out = _ended(process)
    assert code == -signal.SIGTERM, "it has no handler"
    assert "CUDA_ERROR_OUT_OF_MEMORY" in out
    assert "Created device" in out


def test_tensorflow_answers_as_its_rest_api_does(bench: Bench) -> None:
    """/v1/models is 400; unknown models 404; an empty predict 400; metrics where the file says."""
    config = bench.home / "mon.config"
    config.write_text('prometheus_config { enable: true, path: "/mon" }')
    _tensorflow(bench, f"--monitoring_config_file={config}")
    bench.up("/v1/models/m")
    assert bench.ask("/v1/models").status_code == 400
    assert bench.ask("/v1/models/other").status_code == 404
    assert bench.ask("/v1/models/m:predict", {"instances": []}).status_code == 400
    assert bench.ask("/v1/models/m:predict", {"instances": [1, 2]}).json()["predictions"]
    assert ":tensorflow:serving:request_count" in bench.ask("/mon").text
    bench.faults(oom_next_request=True)
    full = bench.ask("/v1/models/m:predict", {"instances": [1]})
    assert full.status_code == 429
    assert bench.ask("/v1/models/m:predict", {"instances": [1]}).status_code == 200


def test_tensorflow_without_its_model_ends_with_255(bench: Bench) -> None:
    """The sentence names it."""
    code, out = _ended(bench.start("tensorflow", "--model_name=x", "--model_base_path=/nowhere/x"))
    assert code == 255
    assert "1 model(s) did not become available" in out


# -- Ollama -------------------------------------------------------------------------------------
def test_ollamas_runner_holds_the_memory(bench: Bench) -> None:
    """Nothing until a load; unload by keep_alive 0 gives it back; the server holds none."""
    process = bench.ollama(OLLAMA_CONTEXT_LENGTH="8192")
    bench.up("/api/version")
    assert bench.gpu.processes(0) == []
    loaded = bench.ask("/api/generate", {"model": "qwen2.5:3b", "keep_alive": -1})
    assert loaded.json()["done_reason"] == "load"
    pid, used = bench.gpu.processes(0)[0]
    assert pid != process.pid
    assert used > 2 * GIB
    row = bench.ask("/api/ps").json()["models"][0]
    assert row["size"] == row["size_vram"]
    assert (
        bench.ask("/api/generate", {"model": "qwen2.5:3b", "keep_alive": 0}).json()["done_reason"]
        == "unload"
    )
    wait_until(lambda: bench.gpu.memory(0)[2] == 0, 5)


def test_ollama_puts_on_the_cpu_what_does_not_fit_its_margin(bench: Bench) -> None:
    """Silently: only size_vram < size tells. The margin is MiB since 0.30."""
    bench.ollama(LLAMA_ARG_FIT_TARGET=str(22 * 1024), OLLAMA_CONTEXT_LENGTH="8192")
    bench.up("/api/version")
    bench.ask("/api/generate", {"model": "qwen2.5:3b"})
    row = bench.ask("/api/ps").json()["models"][0]
    assert 0 < row["size_vram"] < row["size"]


def test_ollama_keeps_one_model_when_told_so(bench: Bench) -> None:
    """The second evicts the first."""
    bench.ollama(OLLAMA_MAX_LOADED_MODELS="1")
    bench.up("/api/version")
    for model in ("qwen2.5:3b", "llama3.2:1b"):
        assert bench.ask("/api/generate", {"model": model}).status_code == 200
    assert [m["name"] for m in bench.ask("/api/ps").json()["models"]] == ["llama3.2:1b"]
    assert bench.ask("/api/generate", {"model": "nobody"}).status_code == 404


def test_ollama_ends_with_its_runners_on_sigterm_and_orphans_them_on_sigkill(bench: Bench) -> None:
    """No drain, exit 0; ollama #5642."""
    process = bench.ollama()
    bench.up("/api/version")
    bench.ask("/api/generate", {"model": "qwen2.5:3b"})
    runner = bench.gpu.processes(0)[0][0]
    process.kill()
    process.wait(10)
    assert procfs.ref(runner) is not None
    os.kill(runner, signal.SIGKILL)
    second = bench.ollama()
    bench.up("/api/version")
    bench.ask("/api/generate", {"model": "qwen2.5:3b"})
    second.send_signal(signal.SIGTERM)
    assert second.wait(10) == 0
    wait_until(lambda: bench.gpu.memory(0)[2] == 0, 5)


def test_ollama_on_a_taken_port_says_so(bench: Bench) -> None:
    """Exit 1 with Go's sentence."""
    bench.ollama()
    bench.up("/api/version")
    code, out = _ended(bench.ollama())
    assert code == 1
    assert f"listen tcp 127.0.0.1:{bench.port}: bind: address already in use" in out


def test_ollamas_runner_may_die_of_memory(bench: Bench) -> None:
    """500 with its words; the next request loads again."""
    bench.ollama()
    bench.up("/api/version")
    bench.ask("/api/generate", {"model": "qwen2.5:3b"})
    bench.faults(oom_next_request=True)
    body = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    assert (
        "model runner has unexpectedly stopped" in bench.ask("/api/generate", body).json()["error"]
    )
    assert bench.ask("/api/generate", body).status_code == 200
