"""The main job on one card: three engines up within their caps, a ledger that adds up, a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket

import requests

from arbiterd import procfs
from tests.support import wait_until
from tests.support.host import MODEL, NAMES, SHARED, Host


def _adds_up(row: dict[str, object]) -> bool:
    ledger = row["ledger"]
    assert isinstance(ledger, list)
    memory = row["memory"]
    assert isinstance(memory, dict)
    used = [one["used"] for one in ledger if "used" in one]
    return None not in used and sum(used) == memory["used"]


def test_three_engines_share_a_card_within_their_caps(host: Host) -> None:
    """Start order TensorFlow, vLLM, Ollama; each under its cap; the ledger adds up to NVML's used."""
    host.write(SHARED)
    host.start()
    host.wait_ready()
    row = host.gpu_row()
    held = {one["holder"]: one for one in row["ledger"]}
    for name in NAMES:
        assert 0 < held[name]["used"] <= held[name]["cap"], name
    assert _adds_up(row)
    assert held["unattributed"]["used"] == held["foreign"]["used"] == 0
    starts = [one["ARBITER_BACKEND"] for one in host.events("start")]
    assert starts == list(NAMES)
    assert host.status()["sharing"] == "shared"
    assert host.get("/readyz").status_code == 200
    assert host.stop() == 0
    assert host.tagged() == []


def test_one_memory_event_at_a_time(host: Host) -> None:
    """The next start comes only after the one before is ready: the journal's order proves it."""
    host.write(SHARED)
    host.start()
    host.wait_ready()
    host.wait_event("load_admitted", "ollama", 2)
    story = [
        (one["ARBITER_EVENT"], one["ARBITER_BACKEND"])
        for one in host.events()
        if one.get("ARBITER_EVENT") in ("start", "ready", "load_admitted")
    ]
    assert story == [
        ("start", "tensorflow"),
        ("ready", "tensorflow"),
        ("start", "vllm"),
        ("ready", "vllm"),
        ("start", "ollama"),
        ("ready", "ollama"),
        ("load_admitted", "ollama"),
        ("load_admitted", "ollama"),
    ], "an action logs its intent and its outcome"


def test_a_stranger_shows_as_foreign_and_is_never_touched(host: Host) -> None:
    """Its bytes are in the row 'foreign' with its pid; the sums still add up."""
    host.write(
        SHARED,
        only=("tensorflow",),
        mode="T",
        extra='[modes.T]\ntensorflow = { gpu = 0, memory = "20%" }',
    )
    host.write('[modes.A]\ntensorflow = { gpu = 0, memory = "20%" }', only=("tensorflow",))
    host.start()
    host.wait_ready()
    handle = host.gpu.alloc(0, 3 << 30, pid=os.getpid())

    def foreign() -> bool:
        row = next(r for r in host.gpu_row()["ledger"] if r["holder"] == "foreign")
        return bool(row["used"] == 3 << 30 and row["pids"] == [os.getpid()])

    host.wait(foreign, "the stranger to be seen")
    assert _adds_up(host.gpu_row())
    host.gpu.free(handle)


def test_a_start_without_room_waits_and_names_the_holder(host: Host) -> None:
    """blocked_start with the stranger's pid as evidence; it starts as soon as there is room."""
    handle = host.gpu.alloc(0, 20 << 30, pid=os.getpid())
    host.write('[modes.A]\nvllm = { gpu = 0, memory = "55%" }', only=("vllm",))
    host.start()
    host.wait(lambda: host.incidents("vllm"), "an incident", 25)
    incident = host.incidents("vllm")[0]
    assert incident["event"] == "blocked_start"
    assert os.getpid() in incident["evidence"]["pids"]
    reason = host.backend("vllm")["reason"]
    assert f"pid {os.getpid()}" in reason
    assert "20.00 GiB" in reason
    answer = host.get("/v1/backends/vllm/ready")
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["Retry-After"]) <= 120
    host.gpu.free(handle)
    host.wait_ready("vllm")
    assert host.incidents("vllm")[0]["closed_at"]


def test_failover_and_degradation_are_advised(host: Host) -> None:
    """vLLM drained: its model is Ollama's. TensorFlow drained: use the LLMs only."""
    rules = (
        f'[[failover]]\nmodel = "{MODEL}"\nfrom = "vllm"\nto = "ollama"\nsource = "qwen2.5:3b"\n'
        '[[degrade]]\nfrom = "tensorflow"\nadvice = "llm-only"\nto = ["vllm", "ollama"]\n'
    )
    host.write(SHARED, extra=rules)
    host.start()
    host.wait_ready()
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


def test_engines_answer_while_supervised(host: Host) -> None:
    """A completion, a streamed one, a prediction, a chat: what the doors are for."""
    host.write(SHARED)
    host.start()
    host.wait_ready()
    vllm, tf, ollama = (
        f"http://127.0.0.1:{host.ports[n]}" for n in ("vllm", "tensorflow", "ollama")
    )
    with requests.Session() as session:
        session.trust_env = False
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
        whole = session.post(f"{vllm}/v1/completions", json=body, timeout=10).json()
        assert whole["usage"]["completion_tokens"] == 4
        with session.post(
            f"{vllm}/v1/completions", json={**body, "stream": True}, timeout=10
        ) as reply:
            lines = [line for line in reply.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) == 5
        predicted = session.post(
            f"{tf}/v1/models/resnet50:predict", json={"instances": [[1]]}, timeout=10
        )
        assert predicted.status_code == 200
        asked = {"model": "qwen2.5:3b", "prompt": "hello", "options": {"num_predict": 3}}
        parts = session.post(f"{ollama}/api/generate", json=asked, timeout=10).text.splitlines()
        assert json.loads(parts[-1])["done"]


def test_a_taken_port_names_its_holder_and_is_waited_for(host: Host) -> None:
    """port_taken tells pid and program; the backend starts once the port is free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", host.ports["ollama"]))
        taken.listen()
        host.write('[modes.A]\nollama = { gpu = 0, memory = "20%" }', only=("ollama",))
        host.start()
        event = host.wait_event("port_taken", "ollama")
        assert f"pid {os.getpid()}" in event["MESSAGE"]
        assert host.backend("ollama")["phase"] == "waiting"
    host.wait_ready("ollama")


def test_a_missing_command_is_said_and_holds_up_nobody(host: Host) -> None:
    """The daemon starts; that backend waits, the others run."""
    extra = f'[backends.ghost]\nkind = "generic"\nhealth = "/h"\nport = {host.ports["other"]}\ncommand = ["/nonexistent/server"]\n'
    modes = '[modes.A]\nollama = { gpu = 0, memory = "20%" }\nghost = { gpu = 0, memory = "5%" }\n'
    host.write(modes, only=("ollama",), backends=extra)
    host.start()
    host.wait_ready("ollama")
    ghost = host.backend("ghost")
    assert ghost["phase"] == "waiting"
    assert "/nonexistent/server is not there" in ghost["reason"]


def test_ctrl_c_leaves_nothing_behind(host: Host) -> None:
    """SIGINT: every process gone, the socket too, exit 0."""
    host.write(SHARED)
    host.start()
    host.wait_ready()
    pids = host.tagged()
    assert len(pids) >= 5
    host.signal(signal.SIGINT)
    assert host.process is not None
    assert host.process.wait(30) == 0
    wait_until(lambda: not any(procfs.ref(pid) for pid in pids), 5, "all engines to be gone")
    assert not (host.home / "run" / "admin.sock").exists()
