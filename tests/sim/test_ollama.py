"""The stand-in Ollama on a card. What needs none is in tests/conformance."""

from __future__ import annotations

import os
import signal
from typing import Any

from arbiterd.engines import engine_of
from arbiterd.engines.base import CauseClass
from arbiterd.model.settings import Kind
from arbiterd.quantities import GIB
from tests.sim.test_engines import Bench, bench
from tests.sim.test_reclaim import Asked
from tests.support import PATIENCE_S, wait_until

__all__ = ["bench"]
SMALL, LARGE = "llama3.2:1b", "llama3.1:8b"


def _load(bench: Bench, model: str, **options: Any) -> dict[str, Any]:
    """Load with these options; the model's row of /api/ps."""
    loaded = bench.ask("/api/generate", {"model": model, "options": options})
    assert loaded.status_code == 200, loaded.text
    rows = bench.ask("/api/ps").json()["models"]
    found: dict[str, Any] = next(row for row in rows if row["name"] == model)
    return found


def test_num_gpu_below_zero_lets_the_fit_decide_and_a_number_bypasses_it(bench: Bench) -> None:
    """What the load gate writes is -1: so LLAMA_ARG_FIT_TARGET counts, and layers may go to the CPU."""
    bench.ollama(LLAMA_ARG_FIT_TARGET=str(22 * 1024), OLLAMA_CONTEXT_LENGTH="8192")
    bench.up("/api/version")
    row = _load(bench, SMALL, num_gpu=-1)
    assert 0 < row["size_vram"] < row["size"]
    row = _load(bench, SMALL, num_gpu=0)
    assert row["size_vram"] == 0
    row = _load(bench, SMALL, num_gpu=999)
    assert row["size_vram"] == row["size"]
    row = _load(bench, SMALL, num_gpu=11)
    assert row["size_vram"] == row["size"] // 3, "11 of its 33 layers"


def test_the_default_context_is_by_the_cards_memory(bench: Bench) -> None:
    """32768 tokens from 23 GiB on: without OLLAMA_CONTEXT_LENGTH a large card is filled."""
    bench.ollama()
    bench.up("/api/version")
    assert _load(bench, SMALL)["context_length"] == 32768


def test_a_model_that_would_take_most_of_what_is_free_evicts_first(bench: Bench) -> None:
    """Predicted use over 80 % of free memory: the idle model with the shortest keep_alive goes."""
    bench.gpu.alloc(0, 14 * GIB, pid=os.getpid())
    bench.ollama(OLLAMA_CONTEXT_LENGTH="4096")
    bench.up("/api/version")
    for model, keep in ((SMALL, "1m"), ("qwen2.5:3b", "10m")):
        assert bench.ask("/api/generate", {"model": model, "keep_alive": keep}).status_code == 200
    assert len(bench.ask("/api/ps").json()["models"]) == 2
    _load(bench, LARGE)
    listed = [row["name"] for row in bench.ask("/api/ps").json()["models"]]
    assert listed == ["qwen2.5:3b", LARGE]


def test_a_load_that_does_not_fit_ends_in_words_that_are_classed(bench: Bench) -> None:
    """cudaMalloc failed: 500, nothing listed; the arbiter reads an out-of-memory from the text."""
    bench.gpu.alloc(0, 22 * GIB, pid=os.getpid())
    bench.ollama(OLLAMA_CONTEXT_LENGTH="4096")
    bench.up("/api/version")
    body = {"model": SMALL, "options": {"num_gpu": 999}}
    failed = bench.ask("/api/generate", body)
    assert failed.status_code == 500
    text = failed.json()["error"]
    assert text.startswith("llama-server process has terminated: exit status 1: cudaMalloc failed")
    assert bench.ask("/api/ps").json()["models"] == []
    found = engine_of(Kind.OLLAMA).classify([text], None, was_ready=True)
    assert found.cause in (CauseClass.OOM_RUNTIME, CauseClass.OOM_START)


def test_a_full_card_in_the_middle_of_an_answer_is_told_as_that(bench: Bench) -> None:
    """The runner aborts; the client gets CUDA's words and all idle models leave."""
    bench.faults(token_s=0.02)
    bench.ollama(OLLAMA_CONTEXT_LENGTH="4096")
    bench.up("/api/version")
    row = _load(bench, SMALL)
    body = {"model": SMALL, "prompt": "x", "stream": False, "options": {"num_predict": 4000}}
    asked = Asked(bench, "/api/generate", body)
    bench.faults(token_s=0.02, grow_mib_per_s=40000)
    reply = asked.done()
    assert (reply.status_code, row["name"]) == (500, SMALL)
    assert reply.json()["error"].endswith("running the model: CUDA error: out of memory")
    wait_until(lambda: bench.ask("/api/ps").json()["models"] == [], 10, "the dead one to leave")


def test_its_own_503_says_no_time_to_come_back(bench: Bench) -> None:
    """OLLAMA_MAX_QUEUE: no Retry-After, so the doors must compute one."""
    bench.faults(load_s=3.0)
    bench.ollama(OLLAMA_MAX_QUEUE="1", OLLAMA_CONTEXT_LENGTH="4096")
    bench.up("/api/version")
    first = Asked(bench, "/api/generate", {"model": SMALL})
    wait_until(lambda: bench.gpu.processes(0), 20, "the first load")
    others = [Asked(bench, "/api/generate", {"model": LARGE}) for _ in range(4)]
    replies = [one.done() for one in others]
    assert sorted(one.status_code for one in replies) == [200, 503, 503, 503]
    assert not any("Retry-After" in one.headers for one in replies)
    assert first.done().status_code == 200


def test_a_killed_runner_is_named_in_the_log_by_its_signal(bench: Bench) -> None:
    """The words that tell a runner's death from an unload; on the next request, twice."""
    process = bench.ollama(OLLAMA_CONTEXT_LENGTH="4096")
    bench.up("/api/version")
    _load(bench, SMALL)
    os.kill(bench.gpu.processes(0)[0][0], signal.SIGKILL)
    wait_until(lambda: bench.gpu.memory(0)[2] == 0, 10)
    assert [row["name"] for row in bench.ask("/api/ps").json()["models"]] == [SMALL]
    _load(bench, SMALL)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)
    words = 'msg="llama-server process no longer running" sys=9 string="signal: killed"'
    assert out.count(words) == 2
