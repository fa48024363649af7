"""What an engine answers and prints: it may be broken, or another program on its port."""

from __future__ import annotations

import math
from typing import Any

from arbiterd.act.engine_requests import _sentence
from arbiterd.engines import engine_of
from arbiterd.engines.metrics_text import sample_sum
from arbiterd.engines.ollama_deaths import Deaths
from arbiterd.engines.tf_canary import MAX_BYTES, NoCanary, TensorflowTrials
from arbiterd.model.health import HttpReply, LoadedModel
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Kind
from tests.core.world import OLLAMA, TF, VLLM, backend
from tests.fuzz import shapes
from tests.fuzz.target import Target

BACKENDS = (VLLM, OLLAMA, TF, backend("other", Kind.GENERIC, health="/health"))
WALL = 1.8e9
PAGE = """\
# HELP vllm:num_requests_running x
vllm:num_requests_running{model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 0.0
vllm:generation_tokens_total{model_name="m"} 1.5e+06
vllm:prompt_tokens_total 12
vllm:request_success_total{finished_reason="stop"} NaN
:tensorflow:serving:request_count{model_name="m",status="OK"} 5
"""
PS = {"models": [{"name": "a:b", "size": 1, "size_vram": 1, "expires_at": "2026-01-01T00:00:00.123456789+01:00",
                  "digest": "d", "context_length": 4096}]}  # fmt: skip
SHOW = {
    "parameters": 'num_ctx 4096\nstop "x"\nnum_gpu 99\nnum_predict 0',
    "modelfile": "FROM /blobs/sha256-1\nADAPTER /a\n",
    "capabilities": ["completion", "vision"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
}
SERVED = {"object": "list", "data": [{"id": "m"}, {"id": "lora"}]}
STATUS = {
    "model_version_status": [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK"}}]
}
METADATA = {"metadata": {"signature_def": {"signature_def": {"serving_default": {
    "method_name": "tensorflow/serving/predict",
    "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "4"}], "unknown_rank": False}}},
}}}}}  # fmt: skip
ERROR = {"error": {"message": "out of memory", "type": "x"}, "detail": [{"msg": "x"}]}
WORDS = """\
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.52 GiB
ValueError: No available memory for the cache blocks. Try increasing gpu_memory_utilization
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
time=2026-01-01 level=ERROR source=sched.go:511 msg="error loading llama server" error="llama runner process has terminated: exit status 2"
CUDA error: an illegal memory access was encountered
[Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use
E0000 external/tsl/bfc_allocator.cc:482] Allocator (GPU_0_bfc) ran out of memory trying to allocate 1.0GiB
"""


def read_page(data: bytes) -> None:
    """A metrics page, a health answer and a refused one, for every engine."""
    text = data.decode("utf-8", "replace")
    for name in (
        "vllm:num_requests_running",
        "vllm:generation_tokens_total",
        ":tensorflow:serving:request_count",
    ):
        found = sample_sum(text, name)
        assert found is None or isinstance(found, float)
    for status in (200, 503):
        _all(HttpReply(status, text, 1.0))


def _all(reply: HttpReply) -> None:
    for one in BACKENDS:
        engine = engine_of(one.kind)
        rounds = max(1, len(engine.ready_probes(one)))
        engine.judge_ready(one, [reply] * rounds)
        engine.judge_canary(one, reply)
        progress = engine.read_progress(reply)
        if progress is not None:
            assert math.isfinite(progress.work)
            assert progress.running >= 0
            assert progress.waiting >= 0
        for model in engine.read_loaded(reply, WALL) or ():
            _sizes(model)
        served = engine.read_served(reply)
        assert served is None or all(isinstance(name, str) for name in served)
        about = engine.read_about(LoadedModel("m", 1, 1, None, "d", 1), reply)
        assert isinstance(about.runner, str)


def _sizes(model: LoadedModel) -> None:
    assert isinstance(model.name, str)
    for size in (model.size_bytes, model.vram_bytes, model.context):
        assert isinstance(size, int)
        assert 0 <= size < 1 << 63, size
    assert model.expires_in_s is None or math.isfinite(model.expires_in_s)


def read_reply(data: bytes) -> None:
    """A JSON answer to whatever was asked of any engine; what is sent on its word is strict JSON."""
    text = data.decode("utf-8", "replace")
    reply = HttpReply(200, text, 1.0)
    _all(reply)
    for one in BACKENDS:
        probe = engine_of(one.kind).load_probe(one, "m", 300.0, 60.0, text)
        if probe is not None and probe.body:
            shapes.strict(probe.body.encode())
    assert isinstance(_sentence(text), str)


def read_signature(data: bytes) -> None:
    """TensorFlow Serving's metadata: a canary of bounded size, which is strict JSON."""
    made = TensorflowTrials().body(HttpReply(200, data.decode("utf-8", "replace"), 1.0))
    assert len(made) <= MAX_BYTES + 4096
    shapes.strict(made.encode())


def read_words(data: bytes) -> None:
    """An engine's last output, as lines."""
    lines = data.decode("utf-8", "replace").splitlines()
    for one in BACKENDS:
        for exit_ in (None, Exit(1), Exit(0)):
            cause = engine_of(one.kind).classify(lines, exit_, was_ready=exit_ is None)
            assert cause.summary
    for death in Deaths().feed(lines):
        assert death


def _documents(*rows: Any) -> dict[str, Any]:
    return {"strategy": shapes.documents(*rows), "seeds": tuple(map(shapes.write, rows))}


TARGETS = (
    Target("engine metrics page", read_page, shapes.texts(PAGE), seeds=(PAGE.encode(),)),
    Target("engine answer", read_reply, **_documents(PS, SHOW, SERVED, STATUS, ERROR)),
    Target("TensorFlow signature", read_signature, raises=(NoCanary,), **_documents(METADATA)),
    Target("engine's last words", read_words, shapes.texts(WORDS), seeds=(WORDS.encode(),)),
)  # fmt: skip
