"""Failover before the first byte, its way back, and the load gate, with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.gateway.client import crowd
from tests.gateway.conftest import make, write
from tests.support import PATIENCE_S, wait_until
from tests.support.host import MODEL, Host, running, settle

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def kill(host: Host, name: str) -> None:
    """SIGKILL of its main process."""
    os.kill(host.mains()[name], signal.SIGKILL)


def connects(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def fresh(sim_lib: Path) -> Iterator[Host]:
    """A host whose Ollama was never started anew: one that was may lack the substitute's name for a moment."""
    one = make(sim_lib)
    write(one)
    with running(one):
        one.wait_ready()
        yield one
    shutil.rmtree(one.home, ignore_errors=True)


def test_the_very_first_request_after_vllms_death_is_answered_by_ollama(fresh: Host) -> None:
    """200 on the same door, under the same name; the body is not replayed, the connect is. So it stays when
    Ollama loses that name.
    """
    host = fresh
    host.fault("vllm", exit_on_start=1)
    kill(host, "vllm")
    wait_until(lambda: not connects(host.ports["vllm"] + 10000), 5, "its port to close")
    answers = crowd(host.door("vllm", "/v1/chat/completions"), CHAT, 4)
    assert [a.status for a in answers] == [200] * 4, [a.body[:200] for a in answers]
    host.wait_event("failover", "vllm")
    route = host.get(f"/v1/route?model={MODEL}").json()
    assert (route["backend"], route["advice"]) == ("ollama", "failover")
    health = host.session.get(host.door("vllm", "/health"), timeout=PATIENCE_S)
    assert health.status_code == 503, "it speaks of its own backend"
    other = {**CHAT, "model": "somebody/else"}
    answer = crowd(host.door("vllm", "/v1/chat/completions"), other, 1)[0]
    assert answer.status == 503
    assert answer.retry_after
    # Ollama loses the name that it was given (`ollama rm`, another store): it is given again
    engine = f"http://127.0.0.1:{host.ports['ollama'] + 10000}"
    gone = host.session.delete(f"{engine}/api/delete", json={"model": MODEL}, timeout=PATIENCE_S)
    assert gone.status_code == 200
    chats = host.door("vllm", "/v1/chat/completions")
    host.wait(lambda: crowd(chats, CHAT, 1)[0].status == 200, "the substitute's name to be back")
    host.fault("vllm")
    host.wait_event("failback", "vllm")
    assert crowd(host.door("vllm", "/v1/chat/completions"), CHAT, 1)[0].status == 200
    assert host.get(f"/v1/route?model={MODEL}").json()["backend"] == "vllm"


def test_failover_and_degradation_are_advised(host: Host) -> None:
    """vLLM drained: its model is Ollama's. TensorFlow drained: use the LLMs only."""
    route = f"/v1/route?model={MODEL}"
    assert host.get(route).json()["backend"] == "vllm"
    assert host.ctl("drain", "vllm").returncode == 0
    host.wait(lambda: host.get(route).json().get("backend") == "ollama", "failover")
    assert host.get(route).json()["model"] == "qwen2.5:3b"
    assert host.ctl("drain", "tensorflow").returncode == 0
    host.wait(
        lambda: host.get("/v1/route?backend=tensorflow").json().get("advice") == "llm-only",
        "advice",
    )
    assert host.ctl("drain", "ollama").returncode == 0
    host.wait(lambda: host.get("/readyz").status_code == 503, "nobody to accept")
    answer = host.get(route)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert host.ctl("resume", "vllm").returncode == 0
    host.wait(lambda: host.get(route).json().get("backend") == "vllm", "failback")
    assert host.get("/v1/route?model=nobody-has-it").status_code == 404
    assert host.get("/v1/route").status_code == 422


def test_ollamas_v1_goes_to_vllm_when_ollama_is_out(host: Host) -> None:
    """The other way round: /v1 bodies only, under Ollama's name."""
    host.fault("ollama", exit_on_start=1)
    kill(host, "ollama")
    host.wait_event("failover", "ollama")
    body = {**CHAT, "model": "qwen2.5:3b"}
    door = host.door("ollama", "/v1/chat/completions")
    # the journal may be ahead of HAProxy by a moment, and the request of that moment gets its 503
    host.wait(lambda: crowd(door, body, 1)[0].status == 200, "vLLM to answer for it")
    native = crowd(host.door("ollama", "/api/chat"), body, 1)[0]
    assert native.status == 503
    assert native.retry_after


def test_only_requests_in_a_killed_engine_go_without_an_answer(host: Host) -> None:
    """On a kept-alive connection HAProxy closes those like the engine itself would; the next one on a
    new connection has its answer.
    """
    url, rows = host.door("tensorflow", "/v1/models/resnet50:predict"), {"instances": [1]}
    assert host.session.post(url, json=rows, timeout=PATIENCE_S).status_code == 200
    kill(host, "tensorflow")
    silent = 0
    for _ in range(30):
        try:
            reply = host.session.post(url, json=rows, timeout=PATIENCE_S)
        except requests.ConnectionError:
            silent += 1
            continue
        assert reply.status_code in (200, 502, 503)
        assert reply.status_code == 200 or reply.headers["Retry-After"]
    assert silent <= 1


def test_all_out_means_503_at_every_door_and_no_token(host: Host) -> None:
    """With Retry-After, in the door's own shape, and one incident."""
    for name in ("tensorflow", "vllm", "ollama"):
        host.fault(name, exit_on_start=1)
        kill(host, name)
    host.wait(lambda: host.events("all_unavailable"), "the incident", 30)
    asked = {
        ("tensorflow", "/v1/models/resnet50:predict"): {"instances": [1]},
        ("vllm", "/v1/chat/completions"): CHAT,
        ("ollama", "/api/chat"): {**CHAT, "model": "qwen2.5:3b"},
        ("llm", "/v1/chat/completions"): CHAT,
    }
    for (door, path), body in asked.items():
        answer = crowd(host.door(door, path), body, 1)[0]
        assert answer.status == 503, (door, answer)
        assert 1 <= int(answer.retry_after) <= 120
    assert host.get("/readyz").status_code == 503


def test_the_load_gate_killed_is_back_and_resident_models_go_on(host: Host) -> None:
    """Within a second or two; other doors never notice."""
    body = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 2}}
    pid = gate(host)
    os.kill(pid, signal.SIGKILL)
    predict = crowd(host.door("tensorflow", "/v1/models/resnet50:predict"), {"instances": [1]}, 1)
    assert predict[0].status == 200
    host.wait(lambda: gate(host) != pid, "another gate")
    host.wait(
        lambda: crowd(host.door("ollama", "/api/generate"), body, 1)[0].status == 200, "an answer"
    )


def gate(host: Host) -> int:
    """Pid of the load gate."""
    import json

    return int(json.loads((host.home / "run/gateway/gate.pid.json").read_text())["pid"])


def test_doors_and_gate_outlive_the_daemon(host: Host) -> None:
    """SIGKILL of the daemon: traffic goes on; a load waits, then 503; the next daemon adopts."""
    host.kill()
    body = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 2}}
    for door, path, given in (
        ("tensorflow", "/v1/models/resnet50:predict", {"instances": [1]}),
        ("vllm", "/v1/chat/completions", CHAT),
        ("ollama", "/api/generate", body),
    ):
        assert crowd(host.door(door, path), given, 1)[0].status == 200, door
    pids = sorted(host.services())
    host.start()
    host.wait_ready()
    assert sorted(host.services()) == pids
    assert settle(lambda: sorted(host.services()) == pids, 1.0)


def gate_knows(host: Host, model: str) -> None:
    """Wait until the gate has taken the file that lists this model: it looks once a second."""
    wrong = {
        "model": model,
        "prompt": "x",
        "keep_alive": "abc",
    }  # refused by itself, after the list

    def taken() -> bool:
        answer = crowd(host.door("ollama", "/api/generate"), wrong, 1)[0]
        return answer.status == 400

    wait_until(taken, 20, f"the gate to know {model}")


def test_a_cold_model_is_loaded_once_for_a_crowd_and_over_the_cap_refused(host: Host) -> None:
    """Single flight, granted by the daemon; 8B does not fit into 20 % of the card."""
    models = 'models = ["qwen2.5:3b", "llama3.2:1b", "llama3.1:8b"]\n'
    text = host.config.read_text().replace('models = ["qwen2.5:3b"]\n', models)
    host.config.write_text(text)
    assert host.ctl("reload", "--wait=done").returncode == 0
    host.wait_ready()
    gate_knows(host, "llama3.2:1b")
    cold = {"model": "llama3.2:1b", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    answers = crowd(host.door("ollama", "/api/generate"), cold, 4)
    assert [a.status for a in answers] == [200] * 4, [a.body[:200] for a in answers]

    def granted() -> int:  # the client's answer may be here before the tick's journal entries
        told = [e["MESSAGE"] for e in host.events("load_admitted", "ollama")]
        return len([one for one in told if "llama3.2:1b" in one and "expected" in one])

    host.wait(granted, "the load to be told")
    assert granted() == 1
    huge = crowd(host.door("ollama", "/api/generate"), {**cold, "model": "llama3.1:8b"}, 1)[0]
    assert huge.status == 503
    assert "cap of ollama" in huge.body.decode()
    host.wait_event("load_refused", "ollama")


def another_gate(host: Host) -> None:
    """One that has asked nothing of the Ollama before."""
    pid = gate(host)
    os.kill(pid, signal.SIGKILL)
    host.wait(lambda: gate(host) != pid, "another gate")
    body = {**CHAT, "model": "qwen2.5:3b", "stream": False}
    door = host.door("ollama", "/api/chat")
    host.wait(lambda: crowd(door, body, 1)[0].status == 200, "its answer")


def test_below_v1_a_modelfile_cannot_ask_for_more_context_than_configured(host: Host) -> None:
    """/v1 takes no options, so its own num_ctx would size the runner: refused, with the way out. Ollama's own
    API goes on.
    """
    host.fault("ollama", parameters="num_ctx                        131072")
    another_gate(host)
    body = {**CHAT, "model": "qwen2.5:3b"}
    try:
        door = host.door("ollama", "/v1/chat/completions")
        # vLLM answers for it as long as the new gate is not seen
        (answer,) = wait_until(lambda: [a for a in crowd(door, body, 1) if a.status == 400])
        assert "num_ctx 131072" in answer.body.decode()
    finally:
        host.fault("ollama")
        another_gate(host)


def test_a_load_is_held_while_vllm_starts_and_uses_no_slot(host: Host) -> None:
    """Resident models pass at once meanwhile."""
    models = 'models = ["qwen2.5:3b", "llama3.2:1b"]\n'
    text = host.config.read_text().replace('models = ["qwen2.5:3b"]\n', models)
    text = text.replace(
        'models = ["qwen2.5:3b", "llama3.2:1b"]\n', models + "max_loaded_models = 2\n"
    )
    text = text.replace(
        'ollama = { gpu = 0, memory = "20%" }', 'ollama = { gpu = 0, memory = "24%" }'
    )
    text = text.replace(
        'tensorflow = { gpu = 0, memory = "20%" }', 'tensorflow = { gpu = 0, memory = "15%" }'
    )
    text = text.replace("context_length", "#context_length")
    text = text.replace("max_loaded_models = 2\n", "max_loaded_models = 2\ncontext_length = 1024\n")
    host.config.write_text(text)
    done = host.ctl("reload", "--wait=done")
    assert done.returncode == 0, done.stderr
    host.wait_ready()
    gate_knows(host, "llama3.2:1b")
    engine = f"http://127.0.0.1:{host.ports['ollama'] + 10000}/api/ps"

    def resident() -> bool:
        found = host.session.get(engine, timeout=PATIENCE_S).json()["models"]
        return "qwen2.5:3b" in {one["name"] for one in found}

    host.wait(resident, "the warm load of the restarted Ollama")
    host.fault("vllm", start_delay_s=3600)
    assert host.ctl("restart", "vllm").returncode == 0
    host.wait_phase("vllm", "starting")
    warm = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    assert crowd(host.door("ollama", "/api/generate"), warm, 1)[0].status == 200
    assert host.backend("vllm")["phase"] == "starting", "it was not held until the start was over"
    cold = crowd(host.door("ollama", "/api/generate"), {**warm, "model": "llama3.2:1b"}, 1)[0]
    assert cold.status in (200, 503), cold.body
    host.wait_event("load_held", "ollama")
    assert "vllm is starting" in host.events("load_held", "ollama")[0]["MESSAGE"]
    host.fault("vllm")
    assert cold.status == 200 or cold.retry_after
