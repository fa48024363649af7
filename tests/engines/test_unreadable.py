"""Whatever an engine answers: NaN, infinities, garbage and nesting without end tell nothing, and end nothing."""

from __future__ import annotations

import math

import pytest

from arbiterd.engines import engine_of
from arbiterd.model.health import HttpReply, LoadedModel
from arbiterd.model.settings import Kind
from tests.core.world import backend

RUNNING = "vllm:num_requests_running"
BODIES = [
    "", "NaN", "{", "[]", "null", "5", '"x"', "[" * 5000, '{"a":' * 2000, "9" * 100_000, "\x00\xff",
    '{"models":NaN}', '{"models":[NaN]}', '{"models":[{"name":1}]}', '{"models":{"a":1}}',
    '{"models":[{"name":"a","size":1e400,"size_vram":NaN,"expires_at":"x"}]}',
    '{"models":[{"name":"a","size":' + "9" * 5000 + "}]}",
    '{"models":[{"name":"a","size":-5,"size_vram":1e300,"expires_at":"9999-12-31T23:59:59+23:59"}]}',
    '{"models":[{"name":"a","expires_at":"0001-01-01T00:00:00-23:59"}]}',
    '{"data":NaN}', '{"data":[{"id":5}]}', '{"data":[{"id":"a","max_model_len":1e400}]}',
    '{"model_version_status":[NaN]}', '{"model_version_status":[{"state":5,"status":NaN}]}',
    f"{RUNNING} NaN\nvllm:num_requests_waiting Inf\nvllm:generation_tokens_total -Inf\n",
    f"{RUNNING} 1\nvllm:num_requests_waiting NaN\nvllm:prompt_tokens_total 1e400\n",
    f'{RUNNING}{{a="b"}} 1e308\n' * 100, f"{RUNNING}\n", f"{RUNNING}{{", f"{RUNNING} x\n",
]  # fmt: skip


@pytest.mark.parametrize("kind", list(Kind))
def test_no_answer_ends_a_probe(kind: Kind) -> None:
    """Every reader of every engine, at every status; what comes out is finite."""
    engine, one = engine_of(kind), backend("b", kind)
    model = LoadedModel("a", 1, 1)
    for body in BODIES:
        for status in (200, 0, 500):
            reply = HttpReply(status, body, 1.0)
            engine.judge_ready(one, [reply] * max(1, len(engine.ready_probes(one))))
            engine.judge_canary(one, reply)
            engine.read_served(reply)
            engine.read_about(model, reply)
            for loaded in engine.read_loaded(reply, 1.0) or ():
                assert loaded.expires_in_s is None or math.isfinite(loaded.expires_in_s)
            progress = engine.read_progress(reply)
            assert progress is None or math.isfinite(progress.work)


def test_counts_that_are_none_are_passed_over() -> None:
    """The finite ones beside them count."""
    page = f'{RUNNING}{{a="1"}} 2\n{RUNNING}{{a="2"}} NaN\nvllm:num_requests_waiting Inf\n'
    progress = engine_of(Kind.VLLM).read_progress(HttpReply(200, page, 1.0))
    assert progress is not None
    assert (progress.running, progress.waiting) == (2, 0)
