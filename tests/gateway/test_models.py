"""Ollama's models behind HAProxy and load gate: one runner per model, whatever clients ask for."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.gateway.conftest import make, write
from tests.support import PATIENCE_S
from tests.support.host import Host, running

WARM, OTHER = "qwen2.5:3b", "llama3.2:1b"
ROUTES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/api/generate", {"prompt": "x", "stream": False, "options": {"num_predict": 1}}),
    ("/api/chat", {"messages": [{"role": "user", "content": "x"}], "stream": False}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
)
PROMPTS: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "x"},
    "/api/chat": {"messages": [{"role": "user", "content": "x"}]},
    "/api/embed": {"input": "x"},
    "/api/embeddings": {"prompt": "x"},
}
ANEW = (
    {"num_ctx": 512}, {"num_batch": 64}, {"num_gpu": 0}, {"num_gpu": 5}, {"main_gpu": 1}, {"num_thread": 1},
    {"use_mmap": True}, {"draft_num_predict": 7},
)  # fmt: skip


def engine(host: Host, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ollama itself, past every door."""
    url = f"http://127.0.0.1:{host.ports['ollama'] + 10000}{path}"
    if body is None:
        found = host.session.get(url, timeout=PATIENCE_S).json()
    else:
        found = host.session.post(url, json=body, timeout=PATIENCE_S).json()
    assert isinstance(found, dict)
    return found


def resident(host: Host) -> list[str]:
    """What /api/ps lists."""
    return [one["name"] for one in engine(host, "/api/ps")["models"]]


def runners(host: Host) -> dict[int, list[str]]:
    """Pids and argv of Ollama's children."""
    out = {}
    for pid in host.backend("ollama")["pids"]:
        try:
            process = psutil.Process(pid)
            children = process.children(recursive=True)
            for one in (process, *children):
                argv = one.cmdline()
                if any("llama_server" in word or "llama-server" in word for word in argv):
                    out[one.pid] = argv
        except psutil.NoSuchProcess:
            continue
    return out


def leases(host: Host) -> int:
    """Loads that the arbiter has granted to clients so far. A client's answer may be here before the
    journal entries of its tick: two ticks later they are.
    """
    tick = host.status()["loop"]["tick"]
    host.wait(lambda: host.status()["loop"]["tick"] > tick + 1, "two ticks")
    told = [e["MESSAGE"] for e in host.events("load_admitted", "ollama")]
    return sum("expected" in one for one in told)


def post(host: Host, path: str, body: dict[str, Any]) -> Any:
    """One POST at Ollama's door."""
    return host.session.post(host.door("ollama", path), json=body, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def doors(sim_lib: Path) -> Iterator[Host]:
    """Two models allowed, one place."""
    host = make(sim_lib)
    write(host)
    text = host.config.read_text().replace(
        f'models = ["{WARM}"]', f'models = ["{WARM}", "{OTHER}"]'
    )
    host.config.write_text(text)
    with running(host):
        host.wait_ready()
        yield host
    shutil.rmtree(host.home, ignore_errors=True)


@pytest.fixture
def warm(doors: Host) -> Host:
    """The warm model resident, and nothing else."""

    def alone() -> bool:
        with suppress(requests.ConnectionError):  # an Ollama that is being started anew
            if resident(doors) == [WARM]:
                return True
            post(doors, "/api/generate", {"model": WARM})
        return False

    doors.wait(alone, "the warm model alone", every_s=0.2)
    return doors


@pytest.mark.parametrize(
    "name", [WARM, "QWEN2.5:3B", "library/qwen2.5:3b", "registry.ollama.ai/library/qwen2.5:3b", " qwen2.5:3b "]
)  # fmt: skip
def test_every_spelling_is_the_same_model_and_needs_no_load(warm: Host, name: str) -> None:
    """At every route, through HAProxy and gate; the runner and its argv stay."""
    before, granted = runners(warm), leases(warm)
    assert before
    for path, body in ROUTES:
        reply = post(warm, path, {"model": name, **body})
        assert reply.status_code == 200, reply.text
    assert runners(warm) == before
    assert leases(warm) == granted


@pytest.mark.parametrize("options", ANEW)
def test_no_option_starts_the_runner_anew(warm: Host, options: dict[str, Any]) -> None:
    """Whatever a body asks of its runner: pid and argv stay, before and after."""
    before, granted = runners(warm), leases(warm)
    for path, body in ROUTES:
        for more in ({"options": options}, {"shift": False}, {"options": options, "shift": True}):
            reply = post(warm, path, {"model": WARM, **body, **more})
            assert reply.status_code == 200, reply.text
    assert runners(warm) == before
    assert leases(warm) == granted


def test_keep_alive_0_loads_nothing_and_evicts_nothing(warm: Host) -> None:
    """`ollama stop` of a model that is not there: an answer, no load, the resident one stays."""
    before, granted = runners(warm), leases(warm)
    bare = post(warm, "/api/generate", {"model": OTHER, "keep_alive": 0})
    assert (bare.status_code, bare.json()["done_reason"]) == (200, "unload")
    chat = post(warm, "/api/chat", {"model": OTHER, "messages": [], "keep_alive": "0s"})
    assert (chat.status_code, chat.json()["done_reason"]) == (200, "unload")
    embed = post(warm, "/api/embed", {"model": OTHER, "input": [], "keep_alive": 0})
    assert (embed.status_code, embed.json()["embeddings"]) == (200, [])
    for path, more in PROMPTS.items():
        asked = post(warm, path, {"model": OTHER, "keep_alive": 0, **more})
        assert asked.status_code == 503
        assert int(asked.headers["Retry-After"]) > 0
        assert "keep_alive 0 loads nothing" in asked.json()["error"]
    assert resident(warm) == [WARM]
    assert runners(warm) == before
    assert leases(warm) == granted


def test_the_warm_model_can_be_sent_away_and_comes_back_when_asked_for(warm: Host) -> None:
    """The unload button at the door; a prompt with keep_alive 0 is answered first."""
    body = {"model": WARM, "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    answer = post(warm, "/api/generate", {**body, "keep_alive": 0})
    assert answer.status_code == 200
    assert answer.json()["response"]
    warm.wait(lambda: not resident(warm), "the unload")
    warm.wait(
        lambda: any(
            "a client has unloaded it" in e["MESSAGE"] for e in warm.events("load_held", "ollama")
        ),
        "the reason to be told",
    )
    granted = leases(warm)
    again = post(warm, "/api/generate", {**body, "keep_alive": 0})  # also where a place is free
    assert (again.status_code, "loads nothing" in again.json()["error"]) == (503, True)
    assert (resident(warm), leases(warm)) == ([], granted)
    assert post(warm, "/v1/completions", {"model": WARM, "prompt": "x", "max_tokens": 1}).ok
    assert resident(warm) == [WARM]


def test_a_model_that_is_busy_beyond_its_time_is_resident(doors: Host) -> None:
    """expires_at lies in the past while requests overlap: no lease, no 503."""
    asked = {"model": OTHER, "prompt": "x", "keep_alive": "1s", "options": {"num_predict": 1}}
    assert post(doors, "/api/generate", {**asked, "stream": False}).status_code == 200
    doors.fault("ollama", token_s=0.05)
    try:
        slow = {**asked, "options": {"num_predict": 60}}
        with doors.session.post(
            doors.door("ollama", "/api/generate"), json=slow, stream=True, timeout=PATIENCE_S
        ) as stream:
            parts = stream.iter_lines()
            next(parts)
            granted = leases(doors)
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                next(parts)
            listed = post(
                doors, "/v1/completions", {"model": OTHER, "prompt": "x", "max_tokens": 1}
            )
            assert listed.status_code == 200, listed.text
            assert leases(doors) == granted
    finally:
        doors.fault("ollama")


def test_no_tokens_have_an_end(warm: Host) -> None:
    """num_predict 0 and max_tokens 0 reach Ollama as its own cap of 10 x num_ctx: the client sees them
    begin like any other, and leaves.
    """
    for path, body in (
        ("/api/generate", {"prompt": "x", "options": {"num_predict": 0}}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0, "stream": True}),
    ):
        with warm.session.post(
            warm.door("ollama", path), json={"model": WARM, **body}, stream=True, timeout=PATIENCE_S
        ) as stream:
            assert stream.status_code == 200
            assert next(stream.iter_lines())


def test_an_invalid_name_is_told_as_that(warm: Host) -> None:
    """Ollama says so, too; nothing is asked of it."""
    reply = post(warm, "/api/generate", {"model": "qwen2.5:", "prompt": "x"})
    assert reply.status_code == 400
    assert "invalid model name" in reply.json()["error"]


LIBRARY = {
    "tiny-e": {"weights": 100_000_000, "kv_per_token": 1024, "layers": 4, "embedding": 64},
    "tiny-f": {"weights": 100_000_000, "kv_per_token": 1024, "layers": 4, "embedding": 32},
    "tiny-a": {"weights": 100_000_000, "kv_per_token": 1024, "layers": 4},
    "tiny-c": {
        "weights": 100_000_000,
        "kv_per_token": 1024,
        "layers": 4,
        "parameters": {"num_ctx": 512},
    },
    "tiny-g": {
        "weights": 100_000_000,
        "kv_per_token": 1024,
        "layers": 4,
        "parameters": {"num_gpu": 3},
    },
    "tiny-n": {
        "weights": 100_000_000,
        "kv_per_token": 1024,
        "layers": 4,
        "parameters": {"num_predict": 0, "num_ctx": 8},
    },
    "tiny-h": {"blob": "tiny-a"},
    "tiny-x": {"weights": 120_000_000, "kv_per_token": 1024, "layers": 4},
}


@pytest.fixture(scope="module")
def library(sim_lib: Path) -> Iterator[Host]:
    """Modelfiles with values of their own, an embedding model first, room for two."""
    host = make(sim_lib)
    write(host, ollama="max_loaded_models = 2\ncontext_length = 1024\n", extra="")
    models = host.home / "library.json"
    models.write_text(json.dumps(LIBRARY))
    faults = f'GPU_SIM_FAULTS = "{host.home}/faults/ollama.json"'
    text = host.config.read_text().replace(faults, f'{faults}, GPU_SIM_MODELS = "{models}"')
    names = ", ".join(f'"{name}"' for name in LIBRARY)
    host.config.write_text(text.replace(f'models = ["{WARM}"]', f"models = [{names}]"))
    with running(host):
        host.wait_ready("ollama")
        yield host
    shutil.rmtree(host.home, ignore_errors=True)


def test_an_embedding_model_may_be_the_warm_one(library: Host) -> None:
    """Loaded by its own route; it embeds, and no chat is asked of it."""
    library.wait(lambda: "tiny-e:latest" in resident(library), "the warm model")
    before, granted = runners(library), leases(library)
    embedded = post(library, "/api/embed", {"model": "tiny-e", "input": "x"})
    assert embedded.status_code == 200, embedded.text
    assert post(library, "/v1/embeddings", {"model": "tiny-e", "input": "x"}).status_code == 200
    assert runners(library) == before
    assert leases(library) == granted


def test_a_chat_with_an_embedding_model_loads_nothing(library: Host) -> None:
    """Ollama's own 400, before any load: nobody loses a place for it."""
    granted = leases(library)
    for path, body in ROUTES:
        reply = post(library, path, {"model": "tiny-f", **body})
        assert (reply.status_code, "does not support" in reply.text) == (400, True), reply.text
    assert "tiny-f:latest" not in resident(library)
    assert leases(library) == granted


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, "does not support tools"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, "does not support tools"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "does not support insert"),
        ("/api/generate", {"prompt": "x", "think": True}, "does not support thinking"),
        ("/api/generate", {"prompt": "x", "images": ["AA=="]}, "Multimodal data provided"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["AA=="]}]}, "Multimodal data provided"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "Multimodal data provided"),
        ("/api/generate", {"prompt": "x", "keep_alive": "abc"}, 'time: invalid duration "abc"'),
        ("/api/chat", {"messages": [], "keep_alive": True}, "Unsupported type: 'bool'"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_do_loads_nothing(
    library: Host, path: str, more: dict[str, object], says: str
) -> None:
    """400 in Ollama's words, before any load."""
    granted = leases(library)
    reply = post(library, path, {"model": "tiny-x", "stream": False, **more})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert says in (error["message"] if path.startswith("/v1/") else error)
    assert leases(library) == granted
    assert "tiny-x:latest" not in resident(library)


@pytest.mark.parametrize("model", ["tiny-a", "tiny-c", "tiny-g"])
def test_a_modelfiles_values_hold_on_every_route(library: Host, model: str) -> None:
    """Whichever route comes first: one load, then the same pid and argv on all of them."""
    first = post(library, "/api/generate", {"model": model, "keep_alive": "1m"})
    assert first.status_code == 200, first.text
    before, granted = runners(library), leases(library)
    for path, body in (*ROUTES, *reversed(ROUTES)):
        for options in ({}, {"num_ctx": 256, "num_gpu": 1}):
            reply = post(library, path, {"model": model, **body, "options": options})
            assert reply.status_code == 200, reply.text
    assert runners(library) == before
    assert leases(library) == granted


def test_two_names_of_one_file_share_the_runner(library: Host) -> None:
    """The other name needs no load, natively and below /v1; /api/ps calls it by the first one's."""
    assert post(library, "/api/generate", {"model": "tiny-a"}).status_code == 200
    before, granted = runners(library), leases(library)
    for path, body in ROUTES:
        reply = post(library, path, {"model": "tiny-h", **body})
        assert reply.status_code == 200, reply.text
    assert runners(library) == before
    assert leases(library) == granted


def test_a_modelfile_without_an_end_gets_one(library: Host) -> None:
    """Its own num_predict 0 counts where the body says nothing: 10 x num_ctx tokens, then the end."""
    body = {"model": "tiny-n", "prompt": "x", "stream": False}
    whole = post(library, "/api/generate", body)
    assert whole.status_code == 200, whole.text
    assert whole.json()["done"]
    assert post(library, "/v1/completions", body).status_code == 200
