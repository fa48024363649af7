"""A vLLM that demands a key is alive: with a key that the arbiter can read, and with one that it cannot."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from arbiterd.core.limits import CANARY_EVERY_S
from arbiterd.model.reading import Known
from arbiterd.trace import Reader
from tests.support.host import MODEL, Host, running

MODES = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }'
KEY = "sk-integration-4711"
URL = "/v1/completions"
MOST = 2  # canaries
BODY = {"model": MODEL, "prompt": "x", "max_tokens": 1}


def _finished(host: Host, engine: str) -> float:
    """How many requests the engine itself has finished; its page asks nobody for a key."""
    page = host.session.get(f"{engine}/metrics", timeout=30).text
    rows = [one for one in page.splitlines() if one.startswith("vllm:request_success_total{")]
    return sum(float(one.rpartition(" ")[2]) for one in rows)


def _canaries(trace: Path) -> int:
    """How many answers of canaries the daemon has seen, by its trace so far."""
    lines = trace.read_text().splitlines(keepends=True) if trace.exists() else []
    if len(lines) < 3:
        return 0
    seen = {observed.health["vllm"].canary for observed, _, _ in Reader(lines).ticks()}
    return len({one.value.seq for one in seen if isinstance(one, Known)})


def _host(home: Path, lib: Path, *, known: bool) -> Host:
    """The key in env_file, behind a door; or, without one, by a name that only a wrapper of vLLM reads."""
    host = Host(home, lib, gateway=known)
    file = host.home / "vllm.env"
    file.write_text(f"{'VLLM_API_KEY' if known else 'OF_MY_OWN'}={KEY}\n")
    host.write(MODES, only=("vllm",), keys={"vllm": f'env_file = "{file}"'})
    if not known:
        wrapper = host.home / "wrapper"
        wrapper.write_text('#!/bin/sh\nVLLM_API_KEY="$OF_MY_OWN" exec "$@"\n')
        wrapper.chmod(0o755)
        text = host.config.read_text()
        host.config.write_text(text.replace("command = [", f'command = ["{wrapper}", '))
    return host


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_vllm_with_a_key_is_alive_and_stays(
    tmp_path: Path, sim_lib: Path, *, known: bool
) -> None:
    """Ready, and never restarted over two canaries (a failed one is repeated after 1 s). A known key opens
    the way to the engine core. Without the key a client gets 401, with it 200, behind a door and without
    one; the key stands in no journal, status, plan or trace.
    """
    with running(_host(tmp_path, sim_lib, known=known)) as host:
        host.wait_ready("vllm")
        engine = host.backend("vllm")
        port = host.ports["vllm"] + (10000 if host.gateway else 0)
        inside = f"http://127.0.0.1:{port}"
        trace = host.home / "trace.jsonl"
        recorder = host.ctl_process("record", str(trace))
        host.wait(lambda: _canaries(trace) >= MOST, "two canaries", (MOST + 1) * CANARY_EVERY_S)
        reached = _finished(host, inside)
        assert reached >= MOST if known else reached == 0
        opened = {"Authorization": f"Bearer {KEY}"}
        url = host.door("vllm", URL)
        assert host.session.post(url, json=BODY, timeout=30).status_code == 401
        assert host.session.post(url, json=BODY, headers=opened, timeout=30).status_code == 200
        now = host.backend("vllm")
        assert (now["pids"], now["restarts"], now["phase"]) == (engine["pids"], 0, "ready")
        assert not [e for e in host.events() if e.get("ARBITER_EVENT") in ("unhealthy", "stuck")]
        recorder.send_signal(signal.SIGINT)
        recorder.communicate(timeout=30)
        _is_nowhere(host, trace)


def _is_nowhere(host: Host, trace: Path) -> None:
    """No place that people read or send on has the key."""
    plan: subprocess.CompletedProcess[str] = host.ctl("plan")
    shown = {
        "journal": host.log.read_text(),
        "status": host.get("/v1/status").text,
        "metrics": host.get("/metrics").text,
        "plan": plan.stdout + plan.stderr,
        "why": host.ctl("why", "vllm").stdout,
        "trace": trace.read_text(),
        "state": "".join(p.read_text() for p in (host.home / "state").rglob("*.json")),
    }
    assert not [name for name, text in shown.items() if KEY in text]
