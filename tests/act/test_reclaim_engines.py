"""The engines' own requests, carried out against the stand-ins: what core will order really moves bytes."""

from __future__ import annotations

import os

import pytest

from arbiterd.act.engine_requests import RequestFailed, carry_out
from arbiterd.config import load
from arbiterd.engines import engine_of
from arbiterd.model.settings import BackendSettings
from arbiterd.quantities import GIB
from tests.sim.test_engines import Bench, bench
from tests.sim.test_reclaim import ASK, _loaded, _used, _vllm
from tests.support import wait_until

__all__ = ["bench"]

CONFIG = """
mode = "A"
[backends]
vllm = { command = ["vllm", "serve", "M"], sleep = true }
ollama = { models = ["llama3.2:1b"] }
[modes.A]
vllm = { gpu = 0, memory = "55%" }
ollama = { gpu = 0, memory = "20%" }
"""


def _backend(bench: Bench, name: str) -> BackendSettings:
    path = bench.home / "gpu-arbiter.toml"
    path.write_text(CONFIG)
    return load(path, {}).settings.active.backends[name]


def _url(bench: Bench) -> str:
    return f"http://127.0.0.1:{bench.port}"


def test_vllm_sleeps_and_wakes(bench: Bench) -> None:
    """Paused first (503 meanwhile), bytes back on the card, an answer after the wake."""
    bench.faults(version="0.33.0")  # 0.32 lets requests to a paused engine hang
    backend = _backend(bench, "vllm")
    engine = engine_of(backend.kind)
    _vllm(bench)
    before = _used(bench)
    carry_out("cannot", _url(bench), engine.sleep_requests(backend))
    assert _used(bench) < 2 * GIB
    assert bench.ask("/v1/completions", ASK).status_code == 503
    carry_out("cannot", _url(bench), engine.wake_requests(backend))
    assert _used(bench) == before
    assert bench.ask("/v1/completions", ASK).status_code == 200


def test_a_sleep_that_fails_ends_with_the_engines_words(bench: Bench) -> None:
    """Which say that it must be restarted; it stays paused."""
    bench.faults(sleep_fails=True, version="0.33.0")
    backend = _backend(bench, "vllm")
    _vllm(bench)
    with pytest.raises(RequestFailed, match="HTTP 500: Call to sleep method failed: Memory usage"):
        carry_out("cannot", _url(bench), engine_of(backend.kind).sleep_requests(backend))
    assert bench.ask("/v1/completions", ASK).status_code == 503


def test_a_wake_without_room_ends_with_the_engines_words(bench: Bench) -> None:
    """CUDA's own."""
    backend = _backend(bench, "vllm")
    engine = engine_of(backend.kind)
    _vllm(bench)
    carry_out("cannot", _url(bench), engine.sleep_requests(backend))
    bench.gpu.alloc(0, 20 * GIB, pid=os.getpid())
    with pytest.raises(RequestFailed, match="HTTP 500: Call to wake_up method failed: CUDA Error"):
        carry_out("cannot wake vllm", _url(bench), engine.wake_requests(backend))


def test_a_version_without_the_routes_cannot_sleep(bench: Bench) -> None:
    """404 for /pause is passed over, for /sleep it is the answer."""
    backend = _backend(bench, "vllm")
    _vllm(bench, VLLM_SERVER_DEV_MODE="0")
    with pytest.raises(RequestFailed, match=r"POST /sleep\?level=1: HTTP 404: Not Found"):
        carry_out(
            "cannot put vllm to sleep",
            _url(bench),
            engine_of(backend.kind).sleep_requests(backend),
        )


def test_ollama_hears_the_unload_and_the_bytes_come_back(bench: Bench) -> None:
    """The request says heard; the card says back."""
    backend = _backend(bench, "ollama")
    _loaded(bench)
    carry_out(
        "cannot", _url(bench), engine_of(backend.kind).unload_requests(backend, "llama3.2:1b")
    )
    wait_until(lambda: _used(bench) == 0, 5)
