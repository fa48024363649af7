"""The main job on one card: three engines up within their caps, a ledger that adds up, a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket

import requests

from arbiterd.linux import procfs
from tests.support import PATIENCE_S, wait_until
from tests.support.host import MODEL, NAMES, SHARED, Host


def _adds_up(row: dict[str, object]) -> bool:
    ledger = row["ledger"]
    assert isinstance(ledger, list)
    memory = row["memory"]
    assert isinstance(memory, dict)
    used = [one["used"] for one in ledger if "used" in one]
    return None not in used and sum(used) == memory["used"]


def _one_at_a_time(host: Host) -> None:
    """The next start comes only after the one before is ready: the journal's order proves it."""
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


def _answered(host: Host) -> None:
    """A completion, a streamed one, a prediction, a chat: what the doors are for."""
    vllm, tf, ollama = (
        f"http://127.0.0.1:{host.ports[n]}" for n in ("vllm", "tensorflow", "ollama")
    )
    with requests.Session() as session:
        session.trust_env = False
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 4}
        whole = session.post(f"{vllm}/v1/completions", json=body, timeout=PATIENCE_S).json()
        assert whole["usage"]["completion_tokens"] == 4
        with session.post(
            f"{vllm}/v1/completions", json={**body, "stream": True}, timeout=PATIENCE_S
        ) as reply:
            lines = [line for line in reply.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) == 5
        predicted = session.post(
            f"{tf}/v1/models/resnet50:predict", json={"instances": [[1]]}, timeout=PATIENCE_S
        )
        assert predicted.status_code == 200
        asked = {"model": "qwen2.5:3b", "prompt": "hello", "options": {"num_predict": 3}}
        parts = session.post(
            f"{ollama}/api/generate", json=asked, timeout=PATIENCE_S
        ).text.splitlines()
        assert json.loads(parts[-1])["done"]


def test_three_engines_share_a_card_within_their_caps(host: Host) -> None:
    """Start order TensorFlow, vLLM, Ollama, one memory event at a time; each under its cap; the ledger adds
    up to NVML's used; all answer. SIGINT: every process gone, the socket too, exit 0.
    """
    host.write(SHARED)
    host.start()
    host.wait_ready()
    row = host.gpu_row()
    held = {one["holder"]: one for one in row["ledger"]}
    for name in NAMES:
        assert 0 < held[name]["used"] <= held[name]["cap"], name
    assert _adds_up(row)
    assert held["unattributed"]["used"] == held["foreign"]["used"] == 0
    assert host.status()["sharing"] == "shared"
    assert host.get("/readyz").status_code == 200
    _one_at_a_time(host)
    _answered(host)
    pids = host.tagged()
    assert len(pids) >= 5
    host.signal(signal.SIGINT)
    assert host.process is not None
    assert host.process.wait(30) == 0
    wait_until(lambda: not any(procfs.ref(pid) for pid in pids), 5, "all engines to be gone")
    assert host.tagged() == []
    assert not (host.home / "run" / "admin.sock").exists()


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


def test_a_taken_port_and_a_missing_command_are_said_and_hold_up_nobody(host: Host) -> None:
    """port_taken tells pid and program, and that backend starts once its port is free. One whose command is
    not there waits and says so; the others run.
    """
    extra = f'[backends.ghost]\nkind = "generic"\nhealth = "/h"\nport = {host.ports["other"]}\ncommand = ["/nonexistent/server"]\n'
    modes = '[modes.A]\nollama = { gpu = 0, memory = "20%" }\nghost = { gpu = 0, memory = "5%" }\n'
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", host.ports["ollama"]))
        taken.listen()
        host.write(modes, only=("ollama",), backends=extra)
        host.start()
        event = host.wait_event("port_taken", "ollama")
        assert f"pid {os.getpid()}" in event["MESSAGE"]
        assert host.backend("ollama")["phase"] == "waiting"
    host.wait_ready("ollama")
    ghost = host.backend("ghost")
    assert ghost["phase"] == "waiting"
    assert "/nonexistent/server is not there" in ghost["reason"]
