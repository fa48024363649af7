"""A real Ollama on the CPU under the real daemon, its doors and the load gate (`make test-real`). In order,
on one daemon; the models are tiny, so a load takes a third of a second.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.gateway.client import crowd
from tests.real_engines import ollama_kit as kit
from tests.support import wait_until
from tests.support.host import Host

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
ALLOWED = ("tiny-a", "tiny-b", "tiny-h", "tiny-c", "tiny-g", "tiny-e")
NATIVE = ("/api/generate", "/api/chat")
V1 = ("/v1/chat/completions", "/v1/completions")
TALK = [{"role": "user", "content": "a"}]


def _home(sim_lib: Path, models: tuple[str, ...], gpu: str, **keys: str) -> Iterator[Host]:
    if not kit.program():
        pytest.skip("no Ollama here: set OLLAMA=/path/to/ollama, or put it on PATH")
    home = Path(tempfile.mkdtemp(prefix="gpua-ollama-", dir="/tmp"))
    one = Host(home, sim_lib, gateway=True)
    kit.make_store(home)
    kit.write_config(one, models, gpu, **keys)
    one.start()
    yield one
    one.close()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def host(sim_lib: Path) -> Iterator[Host]:
    """One card, one Ollama, two models at once."""
    yield from _home(sim_lib, ALLOWED, 'gpu = 0, memory = "60%"', max_loaded_models="2")


def _body(path: str, model: str, *, stream: bool, tokens: int = 8, **more: Any) -> kit.Json:
    own: kit.Json = {"model": model, "stream": stream}
    own |= {"messages": TALK} if "chat" in path else {"prompt": "a"}
    if path in V1:
        own |= {"max_tokens": tokens}
    else:
        own["options"] = {"num_predict": tokens, **more.pop("options", {})}
    return {**own, **more}


def _ask(host: Host, path: str, model: str, **more: Any) -> requests.Response:
    door = more.pop("door", "ollama")
    return kit.post(host.door(door, path), json=_body(path, model, stream=False, **more))


def _warm(host: Host) -> dict[int, tuple[str, ...]]:
    """The one runner of tiny-a, once it is resident: two others may have both places for 60 s each."""
    host.wait(lambda: "tiny-a:latest" in kit.listed(host), "tiny-a to be warm", 120)
    found = kit.of_model(host, "tiny-a")
    assert len(found) == 1, found
    return found


def test_it_becomes_ready_and_keeps_its_first_model_warm(host: Host) -> None:
    """Its version is its own; the warm runner has the context of the configuration."""
    host.wait_ready()
    ((_, argv),) = _warm(host).items()
    assert argv[argv.index("-c") + 1] == str(kit.CONTEXT)
    said = kit.get(host.door("ollama", "/api/version")).json()["version"]
    assert host.backend("ollama")["version"] == said
    assert kit.listed(host)["tiny-a:latest"] > 86400, "for ever"


@pytest.mark.parametrize("door", ["ollama", "llm"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [*NATIVE, *V1])
def test_every_route_is_served_through_both_doors(
    host: Host, path: str, stream: bool, door: str
) -> None:
    """Whole and streamed, to the API's own end."""
    host.wait_ready()
    (answer,) = crowd(host.door(door, path), _body(path, "tiny-a", stream=stream), 1)
    assert answer.status == 200, answer.body
    if path in V1 and stream:
        assert answer.body.rstrip().endswith(b"data: [DONE]")
        return
    last = json.loads(answer.body.strip().splitlines()[-1])
    if path in V1:
        assert last["usage"]["completion_tokens"] == 8
        assert last["choices"][0]["finish_reason"] == "length"
    else:
        assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 8)


ODD: tuple[kit.Json, ...] = (
    {"options": {"num_ctx": 64}},
    {"options": {"num_ctx": 4096}},
    {"options": {"NUM_CTX": 64, "Num_Ctx": 96}},
    {"options": {"num_batch": 32}},
    {"options": {"num_gpu": 0}},
    {"options": {"num_gpu": 7}},
    {"options": {"num_thread": 2}},
    {"options": {"main_gpu": 1}},
    {"options": {"use_mmap": True}},
    {"options": {"use_mmap": False}},
    {"options": {"draft_num_predict": 4}},
    {"options": {"num_keep": 3, "seed": 1, "low_vram": True, "f16_kv": False}},
    {"shift": False},
    {"shift": True},
    {"Shift": False, "SHIFT": True},
    {"truncate": True},
    {"keep_alive": "1s"},
    {"keep_alive": -1},
    {"Keep_Alive": "1s"},
)


def test_nothing_that_a_client_may_say_starts_the_runner_anew(host: Host) -> None:
    """Pid and argv of the warm one through every option on every route, and two canaries."""
    host.wait_ready()
    before = _warm(host)
    for path in (*NATIVE, *V1):
        for odd in ODD:
            answer = _ask(host, path, "tiny-a", **json.loads(json.dumps(odd)))
            assert answer.status_code == 200, (path, odd, answer.text)
            assert kit.of_model(host, "tiny-a") == before, (path, odd)
    count = kit.requests_to_engine(host, "/api/generate")
    host.wait(
        lambda: kit.requests_to_engine(host, "/api/generate") >= count + 2, "two canaries", 90
    )
    assert kit.of_model(host, "tiny-a") == before
    assert kit.listed(host)["tiny-a:latest"] > 86400, "still for ever"


@pytest.mark.parametrize("model", ["tiny-b", "tiny-c", "tiny-g"])
def test_another_model_has_one_runner_on_every_route(host: Host, model: str) -> None:
    """A Modelfile's own num_ctx (tiny-c) and num_gpu (tiny-g) make no route load it anew."""
    host.wait_ready()
    seen: dict[int, tuple[str, ...]] = {}
    for path in (*NATIVE, *V1, *NATIVE):
        answer = _ask(host, path, model)
        assert answer.status_code == 200, answer.text
        found = kit.of_model(host, model)
        assert len(found) == 1, found
        seen = seen or found
        assert found == seen, path
    _warm(host)


def test_two_names_of_one_blob_share_a_runner(host: Host) -> None:
    """Whatever their Modelfiles' sampling says; the warm one stays as it is."""
    host.wait_ready()
    before = _warm(host)
    for name in ("tiny-h", "TINY-A", "library/tiny-h:latest", "tiny-a"):
        for path in ("/api/generate", "/v1/completions"):
            answer = _ask(host, path, name)
            assert answer.status_code == 200, answer.text
            assert kit.of_model(host, "tiny-a") == before, (name, path)


def test_an_embedding_model_embeds_and_refuses_to_talk(host: Host) -> None:
    """Both doors, native and /v1; its answer to generate is Ollama's own 400."""
    host.wait_ready()
    for door in ("ollama", "llm"):
        native = kit.post(
            host.door(door, "/api/embed"), json={"model": "tiny-e", "input": ["a", "b"]}
        )
        assert native.status_code == 200, native.text
        assert [len(one) for one in native.json()["embeddings"]] == [64, 64]
        v1 = kit.post(host.door(door, "/v1/embeddings"), json={"model": "tiny-e", "input": "a"})
        assert v1.status_code == 200, v1.text
        assert len(v1.json()["data"][0]["embedding"]) == 64
    refused = _ask(host, "/api/generate", "tiny-e")
    assert (refused.status_code, "does not support generate" in refused.text) == (400, True)
    assert len(kit.of_model(host, "tiny-e")) == 1


def test_hosts_and_origins_are_decided_at_the_door(host: Host) -> None:
    """Names that nobody gave this host are refused, with and without an Origin of theirs."""
    host.wait_ready()
    url = host.door("ollama", "/api/tags")
    for good in ("localhost", "127.0.0.1:1", "10.1.2.3", "[::1]", "gpu.local", "x.internal"):
        assert kit.get(url, headers={"Host": good}).status_code == 200, good
    for bad in ("evil.example", "evil.example:80", "localhost.evil.example"):
        answer = kit.get(url, headers={"Host": bad})
        assert answer.status_code == 403, bad
        assert answer.text, "a sentence"
    port = host.ports["ollama"]
    own = kit.get(url, headers={"Origin": f"http://127.0.0.1:{port}"})
    assert own.status_code == 200, own.text
    assert kit.get(url, headers={"Origin": "http://evil.example"}).status_code == 403
    body = _body("/api/generate", "tiny-a", stream=False)
    posted = kit.post(
        host.door("ollama", "/api/generate"), json=body, headers={"Origin": "http://localhost:3000"}
    )
    assert posted.status_code == 200, posted.text


@pytest.mark.parametrize("path", [*NATIVE, *V1])
def test_no_tokens_asked_for_means_the_engines_own_bound(host: Host, path: str) -> None:
    """num_predict and max_tokens 0 would never end; they end at 10 x num_ctx."""
    host.wait_ready()
    answer = _ask(host, path, "tiny-a", tokens=0)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    made = found["usage"]["completion_tokens"] if path in V1 else found["eval_count"]
    assert 0 < made <= 10 * kit.CONTEXT


def test_its_own_command_works_through_the_door(host: Host) -> None:
    """list, ps, run, stop; what was stopped stays out until it is asked for."""
    host.wait_ready()
    env = {**os.environ, **kit.environ(host.home, host.ports["ollama"])}

    def say(*words: str) -> str:
        done = subprocess.run(
            [kit.program(), *words],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    _warm(host)
    assert "tiny-b" in say("list")
    assert "tiny-a" in say("ps")
    say("stop", "tiny-a")
    host.wait(lambda: not kit.of_model(host, "tiny-a"), "its runner to end")
    assert "tiny-a" not in say("ps")
    assert "tiny-a:latest" not in kit.listed(host)
    assert _ask(host, "/api/generate", "tiny-a").status_code == 200
    _warm(host)


def test_keep_alive_0_unloads_after_the_last_request_and_never_loads(host: Host) -> None:
    """While a stream runs it goes on to its end; of a model that is not resident nothing happens."""
    host.wait_ready()
    before = _warm(host)
    bye = {"model": "tiny-a", "keep_alive": 0}
    long = _body("/api/generate", "tiny-a", stream=True, tokens=2000)
    with requests.Session() as session:
        session.trust_env = False
        url = host.door("ollama", "/api/generate")
        with session.post(url, json=long, stream=True, timeout=60) as running:
            lines = running.iter_lines()
            next(lines)
            said = kit.post(url, json=bye)
            assert (said.status_code, said.json()["done_reason"]) == (200, "unload")
            assert kit.of_model(host, "tiny-a") == before, "not under a stream"
            *_, last = lines
    end = json.loads(last)
    assert (end["done"], end["eval_count"]) == (True, 2000)
    host.wait(lambda: not kit.of_model(host, "tiny-a"), "its runner to end")
    again = kit.post(url, json=bye)
    assert (again.status_code, again.json()["done_reason"]) == (200, "unload")
    assert not kit.of_model(host, "tiny-a"), "asking to unload loads nothing"
    assert _ask(host, "/api/generate", "tiny-b").status_code == 200
    last_word = _ask(host, "/api/generate", "tiny-b", keep_alive=0)
    assert (last_word.status_code, last_word.json()["eval_count"]) == (200, 8), last_word.text
    host.wait(lambda: not kit.of_model(host, "tiny-b"), "its runner to end")
    assert _ask(host, "/api/generate", "tiny-a").status_code == 200
    _warm(host)


def test_what_is_not_resident_is_not_loaded_for_a_request_that_wants_nothing_to_stay(
    host: Host,
) -> None:
    """Any spelling of keep_alive 0, any route; nor for a chat with an embedding model."""
    host.wait_ready()
    kit.post(host.door("ollama", "/api/generate"), json={"model": "tiny-c", "keep_alive": 0})
    host.wait(lambda: not kit.of_model(host, "tiny-c"), "its runner to end")
    for path in NATIVE:
        for zero in (0, "0", "0s", 0.0):
            said = _ask(host, path, "tiny-c", keep_alive=zero)
            assert (said.status_code, "loads nothing" in said.text) == (503, True), said.text
    assert not kit.of_model(host, "tiny-c")
    kit.post(host.door("ollama", "/api/generate"), json={"model": "tiny-e", "keep_alive": 0})
    host.wait(lambda: not kit.of_model(host, "tiny-e"), "its runner to end")
    for path in (*NATIVE, *V1):
        said = _ask(host, path, "tiny-e")
        assert (said.status_code, "does not support" in said.text) == (400, True), said.text
    assert not kit.of_model(host, "tiny-e")


def test_a_killed_runner_is_told_and_the_next_request_is_served(host: Host) -> None:
    """A stream under way ends with an error at its client, an idle one is loaded anew."""
    host.wait_ready()
    (victim,) = _warm(host)
    started = threading.Event()
    ends: list[str] = []

    def stream() -> None:
        body = _body("/v1/chat/completions", "tiny-a", stream=True, tokens=4000)
        with requests.Session() as session:
            session.trust_env = False
            url = host.door("ollama", "/v1/chat/completions")
            try:
                with session.post(url, json=body, stream=True, timeout=60) as reply:
                    whole = b""
                    for chunk in reply.iter_content(None):
                        whole += chunk
                        started.set()
                    ends.append("clean" if b"[DONE]" in whole else "no end")
            except requests.exceptions.RequestException:
                ends.append("cut")

    one = threading.Thread(target=stream)
    one.start()
    assert started.wait(30)
    os.kill(victim, signal.SIGKILL)
    one.join(60)
    assert ends == ["cut"]
    assert _ask(host, "/api/generate", "tiny-a").status_code == 200
    (second,) = _warm(host)
    os.kill(second, signal.SIGKILL)
    assert _ask(host, "/v1/completions", "tiny-a").status_code == 200
    assert second not in _warm(host)
    wait_until(lambda: _told_of_runner(host), 30, "an event about a runner's end")
    assert host.backend("ollama")["restarts"] == 0, "the server itself is well"


def _told_of_runner(host: Host) -> bool:
    texts = [str(one.get("MESSAGE", one.get("event", ""))) for one in host.events(backend="ollama")]
    return any("runner" in text for text in texts)


def test_after_all_this_it_never_started_anew(host: Host) -> None:
    """One start, no incident left open."""
    assert len(host.events("ready", "ollama")) == 1
    assert [one for one in host.incidents("ollama") if one.get("open")] == []


@pytest.fixture(params=["tiny-e", "tiny-c"])
def cpu(sim_lib: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Host, str]]:
    """An Ollama on the CPU and its first model."""
    first = str(request.param)
    for one in _home(sim_lib, (first, "tiny-a"), 'gpu = "cpu"'):
        yield one, first


def test_any_model_may_be_the_first_also_on_the_cpu(cpu: tuple[Host, str]) -> None:
    """An embedding model is warmed by a route that it has; with gpu = "cpu" no card is asked."""
    host, first = cpu
    host.wait_ready()
    host.wait(lambda: f"{first}:latest" in kit.listed(host), f"{first} to be warm")
    before = kit.of_model(host, first)
    assert len(before) == 1
    path = "/api/embed" if first == "tiny-e" else "/v1/completions"
    body = _body(path, first, stream=False)
    if first == "tiny-e":
        body = {"model": first, "input": "a"}
    answer = kit.post(host.door("ollama", path), json=body)
    assert answer.status_code == 200, answer.text
    assert kit.of_model(host, first) == before
