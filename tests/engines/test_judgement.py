"""What engines' answers and dying words mean (docs/facts/engines.md)."""

from __future__ import annotations

import json

import pytest

from arbiterd.engines import engine_of
from arbiterd.engines.base import CauseClass
from arbiterd.engines.flags import value_of, without
from arbiterd.engines.run_line import container_problem
from arbiterd.engines.vllm_command import model_of
from arbiterd.model.health import HttpReply, LoadedModel
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Kind
from tests.core.world import backend

GONE = HttpReply(0, "", 1.0, "connection refused")

WORDS = [
    (Kind.VLLM, "ValueError: Free memory on device cuda:0 (2.00/23.61 GiB) on startup is less than desired GPU memory utilization (0.5, 11.80 GiB).", CauseClass.NOT_ENOUGH_FREE, True),
    (Kind.VLLM, "AssertionError: Error in memory profiling. Initial free memory 1 GiB", CauseClass.INIT_RACE, True),
    (Kind.VLLM, "No available memory for the cache blocks. Try increasing", CauseClass.BUDGET_TOO_SMALL, True),
    (Kind.VLLM, "To serve at least one request with the model's max seq len (32768), (1 GiB KV cache is needed. Based on it, the estimated maximum model length is 4096. Try", CauseClass.BUDGET_TOO_SMALL, False),
    (Kind.VLLM, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", CauseClass.OOM_START, True),
    (Kind.VLLM, "vllm: error: unrecognized arguments: --foo", CauseClass.CONFIG, False),
    (Kind.VLLM, "ValueError: invalid literal for int() with base 10: 'GPU-1'", CauseClass.CONFIG, False),
    (Kind.VLLM, "EngineDeadError: EngineCore encountered an issue", CauseClass.ENGINE_DEAD, True),
    (Kind.TENSORFLOW, "2 model(s) did not become available: {x}", CauseClass.CONFIG, False),
    (Kind.TENSORFLOW, "Failed to start server. Error: INVALID_ARGUMENT: Failed to BuildAndStart gRPC server", CauseClass.PORT_IN_USE, True),
    (Kind.TENSORFLOW, "F Check failed: c->in_use()", CauseClass.OOM_RUNTIME, True),
    (Kind.TENSORFLOW, "Allocator ran out of memory trying to allocate 1GiB. The caller indicates that this is not a failure", CauseClass.OTHER, True),
    (Kind.OLLAMA, "ggml: cudaMalloc failed: out of memory", CauseClass.OOM_START, True),
    (Kind.OLLAMA, "Error: listen tcp 127.0.0.1:11434: bind: address already in use", CauseClass.PORT_IN_USE, True),
    (Kind.GENERIC, "CUDA out of memory", CauseClass.OOM_START, True),
    (Kind.GENERIC, "NVML: Driver/library version mismatch", CauseClass.DRIVER, False),
    (Kind.VLLM, "nothing of interest", CauseClass.OTHER, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "line", "cause", "retry"), WORDS, ids=[w[1][:40] for w in WORDS])
def test_dying_words_have_a_class(kind: Kind, line: str, cause: CauseClass, retry: bool) -> None:
    """First match in the engine's own table; noise around it does not matter."""
    lines = ["INFO starting", "Traceback", line, "INFO exiting"]
    found = engine_of(kind).classify(lines, Exit(code=1), was_ready=False)
    assert (found.cause, found.retry) == (cause, retry)
    assert found.summary


def test_the_wrapper_line_is_not_the_cause() -> None:
    """'Engine core initialization failed' says nothing when a root cause is above it."""
    lines = [
        "ValueError: No available memory for the cache blocks. Try increasing",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    found = engine_of(Kind.VLLM).classify(lines, Exit(code=1), was_ready=False)
    assert found.cause is CauseClass.BUDGET_TOO_SMALL


def test_exit_zero_of_a_ready_vllm_is_a_dead_engine() -> None:
    """vllm #48966."""
    found = engine_of(Kind.VLLM).classify([], Exit(code=0), was_ready=True)
    assert found.cause is CauseClass.ENGINE_DEAD


def _tf(state: str, code: str = "OK") -> HttpReply:
    row = {"version": "1", "state": state, "status": {"error_code": code, "error_message": ""}}
    return HttpReply(200, json.dumps({"model_version_status": [row]}), 1.0)


@pytest.mark.parametrize(
    ("reply", "ok"),
    [
        (_tf("AVAILABLE"), True),
        (_tf("LOADING"), False),
        (_tf("END", "NOT_FOUND"), False),
        (_tf("AVAILABLE", "INTERNAL"), False),
        (HttpReply(404, "{}", 1.0), False),
        (HttpReply(200, "not json", 1.0), False),
        (GONE, False),
    ],
)
def test_tensorflow_is_ready_only_with_an_available_model(reply: HttpReply, ok: bool) -> None:
    """Status 200 alone says nothing."""
    one = backend("tensorflow", Kind.TENSORFLOW, models=("m",))
    assert engine_of(Kind.TENSORFLOW).judge_ready(one, (reply,)).ok is ok


@pytest.mark.parametrize(("status", "ok"), [(200, True), (503, False), (0, False), (500, False)])
def test_vllm_is_alive_at_200_only(status: int, ok: bool) -> None:
    """503 means the client has seen the engine die."""
    one = backend("vllm", Kind.VLLM)
    reply = HttpReply(status, "", 1.0, "" if status else "connection refused")
    assert engine_of(Kind.VLLM).judge_ready(one, (reply,)).ok is ok


def test_a_full_vllm_passes_its_canary() -> None:
    """Refusing because it is busy is proof of life; a timeout is not."""
    engine, one = engine_of(Kind.VLLM), backend("vllm", Kind.VLLM)
    assert engine.judge_canary(one, HttpReply(503, "The engine is currently busy", 1.0)).ok
    assert not engine.judge_canary(one, HttpReply(0, "", 5000.0, "no answer within 5 s")).ok
    assert not engine.judge_canary(one, HttpReply(500, "", 5.0)).ok


def test_ollamas_canary_never_causes_a_load() -> None:
    """None without a resident model; the runner keeps its own keep-alive and its own context."""
    engine, one = engine_of(Kind.OLLAMA), backend("ollama", Kind.OLLAMA, models=("qwen2.5:3b",))
    assert engine.canary(one, ()) is None
    probe = engine.canary(one, (LoadedModel("qwen2.5:3b", 1, 1, context=512),))
    assert probe is not None
    assert probe.body is not None
    assert probe.path == "/api/generate"
    body = json.loads(probe.body)
    assert "keep_alive" not in body
    assert body["options"] == {"num_predict": 1, "num_ctx": 512, "num_gpu": -1}


def test_an_embedding_model_is_asked_and_loaded_by_its_own_route() -> None:
    """/api/generate answers it with 400 and computes nothing."""
    engine, one = engine_of(Kind.OLLAMA), backend("ollama", Kind.OLLAMA, models=("tiny-e",))
    about = json.dumps({"capabilities": ["embedding"], "parameters": "num_ctx 512"})
    model = engine.read_about(LoadedModel("tiny-e", 1, 1), HttpReply(200, about, 1.0))
    probe = engine.canary(one, (model,))
    assert probe is not None
    assert probe.path == "/api/embed"
    assert json.loads(probe.body or "")["input"]
    load = engine.load_probe(one, "tiny-e", -1, 60.0, about)
    assert load is not None
    assert load.path == "/api/embed"
    assert json.loads(load.body or "") == {
        "model": "tiny-e", "keep_alive": -1, "options": {"num_ctx": 512, "num_gpu": -1}, "input": []
    }  # fmt: skip
    chat = engine.load_probe(one, "m", 60, 60.0, "")
    assert chat is not None
    assert chat.path == "/api/generate"


def test_vllms_counters_are_read_from_prometheus_text() -> None:
    """Summed over engines; missing ones make no progress."""
    text = (
        '# HELP x\nvllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 1\n'
        'vllm:num_requests_waiting{engine="0"} 4\nvllm:generation_tokens_total{engine="0"} 100\n'
    )
    found = engine_of(Kind.VLLM).read_progress(HttpReply(200, text, 1.0))
    assert found is not None
    assert (found.running, found.waiting, found.work) == (3, 4, 100)
    assert engine_of(Kind.VLLM).read_progress(HttpReply(200, "", 1.0)) is None


def test_ollamas_resident_models_are_read_with_nanosecond_times() -> None:
    """Its times have nine places; Python's parser takes six."""
    row = {"name": "m", "size": 10, "size_vram": 5, "expires_at": "2026-01-01T00:00:10.123456789Z"}
    body = json.dumps({"models": [row]})
    found = engine_of(Kind.OLLAMA).read_loaded(HttpReply(200, body, 1.0), 1767225600.0)
    assert found is not None
    assert found[0].vram_bytes == 5
    assert found[0].expires_in_s == pytest.approx(10.123, abs=0.01)


@pytest.mark.parametrize(
    ("command", "model"),
    [
        (("vllm", "serve", "M", "--x"), "M"),
        (("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "M"), "M"),
        (("vllm", "serve", "--model=M"), "M"),
        (("vllm", "serve"), ""),
    ],
)
def test_the_model_is_read_from_vllms_command(command: tuple[str, ...], model: str) -> None:
    """Positional or by flag."""
    assert model_of(command) == model


def test_flags_are_one_in_both_spellings() -> None:
    """--a-b, --a_b, --a-b=X."""
    assert value_of(("x", "--max_model_len", "5"), "max-model-len") == "5"
    assert value_of(("x", "--max-model-len=6"), "max-model-len") == "6"
    assert without(("x", "-v"), ()) == ("x", "-v")


@pytest.mark.parametrize(
    ("command", "image"),
    [
        (
            ("docker", "run", "-d", "--gpus", "all", "-p", "1:1", "repo/img:tag", "serve"),
            "repo/img:tag",
        ),
        (("sudo", "podman", "run", "--rm", "img"), "img"),
        (("/usr/bin/docker", "run", "--name=x", "img"), "img"),
    ],
)
def test_a_container_command_is_refused_with_the_image_form(
    command: tuple[str, ...], image: str
) -> None:
    """The line to write instead is printed."""
    found = container_problem(command)
    assert found is not None
    assert f'image = "{image}"' in found.right
    assert container_problem(("vllm", "serve")) is None


@pytest.mark.parametrize("status", [403, 404, 405, 421, 500, 503])
@pytest.mark.parametrize("kind", [Kind.OLLAMA, Kind.VLLM])
def test_a_refusal_of_the_health_url_is_not_ready(kind: Kind, status: int) -> None:
    """A loopback Ollama answers 403 to a Host that it does not know: so it does to every client."""
    one = backend(kind.value, kind)
    replies = [HttpReply(status, "", 1.0) for _ in engine_of(kind).ready_probes(one)]
    assert not engine_of(kind).judge_ready(one, replies).ok


def test_two_names_of_one_file_share_a_runner_unless_their_modelfiles_ask_for_another() -> None:
    """Sampling does not count; a file that is not told is nobody's."""
    engine = engine_of(Kind.OLLAMA)

    def runner(parameters: str, file: str = "FROM /blobs/sha256-1\n") -> str:
        about = json.dumps({"modelfile": file, "parameters": parameters})
        reply = HttpReply(200, about, 1.0)
        return engine.read_about(LoadedModel("m", 1, 1), reply).runner

    assert runner("temperature 0.5") == runner("top_k 3") != ""
    for other in ("num_ctx 128", "num_batch 64", "num_gpu 3"):
        assert runner(other) != runner("")
    assert runner("", "FROM /blobs/sha256-2\n") != runner("")
    assert runner("", "") == ""


@pytest.mark.parametrize("kind", [Kind.VLLM, Kind.GENERIC])
def test_a_health_url_that_asks_for_a_key_is_life(kind: Kind) -> None:
    """401: it answers. A 403 or a 500 is not that."""
    engine, one = engine_of(kind), backend("x", kind)
    assert engine.judge_ready(one, [HttpReply(401, "", 1.0)]).ok
    assert not engine.judge_ready(one, [HttpReply(403, "", 1.0)]).ok
    assert not engine.judge_ready(one, [HttpReply(500, "", 1.0)]).ok


def test_a_canary_refused_for_its_key_proves_nothing() -> None:
    """vLLM's HTTP layer has said 401, whatever its engine does: neither for nor against it."""
    found = engine_of(Kind.VLLM).judge_canary(backend("x", Kind.VLLM), HttpReply(401, "", 1.0))
    assert (found.ok, found.proves) == (True, False)
