"""vLLMs that demand a key are alive: one whose key the arbiter can read, and one whose key it cannot."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from arbiterd.core.limits import CANARY_EVERY_S
from arbiterd.model.reading import Known
from arbiterd.trace.lines import Reader
from tests.support import PATIENCE_S
from tests.support.host import MODEL, Host, running

KEY = "sk-integration-4711"
NAMES = ("vllm", "other")
CANARIES = 2
OTHER = """\
[backends.other]
kind = "vllm"
command = ["{wrapper}", "{python}", "-m", "arbiterd.sim.engines.vllm", "serve", "{model}"]
port = {port}
env_file = "{file}"
{env}
"""
MODES = """\
[modes.A]
vllm = { gpu = 0, memory = "45%" }
other = { gpu = 0, memory = "45%" }
"""


def _write(host: Host) -> None:
    """``vllm`` has its key in env_file; ``other`` under a name that only a wrapper around it reads."""
    known, own, wrapper = (host.home / name for name in ("vllm.env", "own.env", "wrapper"))
    known.write_text(f"VLLM_API_KEY={KEY}\n")
    own.write_text(f"OF_MY_OWN={KEY}\n")
    wrapper.write_text('#!/bin/sh\nVLLM_API_KEY="$OF_MY_OWN" exec "$@"\n')
    wrapper.chmod(0o755)
    other = OTHER.format(
        wrapper=wrapper, python=sys.executable, model=MODEL, port=host.ports["other"], file=own,
        env=host.env_line("other"),
    )  # fmt: skip
    host.write(MODES, only=("vllm",), backends=other, keys={"vllm": f'env_file = "{known}"'})


def _canaries(trace: Path, name: str) -> int:
    """How many answers of canaries the daemon has had from a backend, by its trace so far."""
    lines = trace.read_text().splitlines(keepends=True) if trace.exists() else []
    if len(lines) < 3:
        return 0
    ticks = (seen.health.get(name) for seen, _, _ in Reader(lines).ticks())
    found = {one.canary.value.seq for one in ticks if one and isinstance(one.canary, Known)}
    return len(found)


def _finished(host: Host, name: str) -> float:
    """How many requests the engine's core has finished; its page asks nobody for a key."""
    page = host.session.get(
        f"http://127.0.0.1:{host.ports[name] + 10000}/metrics", timeout=PATIENCE_S
    ).text
    rows = [one for one in page.splitlines() if one.startswith("vllm:request_success_total{")]
    return sum(float(one.rpartition(" ")[2]) for one in rows)


def test_vllms_with_a_key_become_ready_and_stay(sim_lib: Path) -> None:
    """No restart over two canaries (a failed one is repeated after 1 s and ends in a restart). A known
    key opens the way to the core, an unknown one leaves 401 as life. A client needs the key. It stands in
    no journal, status, metrics, plan, trace or state.
    """
    # HAProxy takes socket paths of 97 bytes at most
    host = Host(Path(tempfile.mkdtemp(prefix="gpua-k-", dir="/tmp")), sim_lib, gateway=True)
    _write(host)
    with running(host):
        host.wait_ready(*NAMES)
        before = {name: host.backend(name)["pids"] for name in NAMES}
        trace = host.home / "trace.jsonl"
        recorder = host.ctl_process("record", str(trace))
        for name in NAMES:
            host.wait(
                lambda name=name: _canaries(trace, name) >= CANARIES,  # type: ignore[misc]
                f"canaries of {name}",
                (CANARIES + 2) * CANARY_EVERY_S,
            )
        assert _finished(host, "vllm") >= CANARIES
        assert _finished(host, "other") == 0
        for name in NAMES:
            now = host.backend(name)
            assert (now["pids"], now["restarts"], now["phase"]) == (before[name], 0, "ready")
            url = host.door(name, "/v1/completions")
            body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
            assert host.session.post(url, json=body, timeout=PATIENCE_S).status_code == 401
            opened = {"Authorization": f"Bearer {KEY}"}
            assert (
                host.session.post(url, json=body, headers=opened, timeout=PATIENCE_S).status_code
                == 200
            )
        assert not [e for e in host.events() if e.get("ARBITER_EVENT") in ("unhealthy", "stuck")]
        recorder.send_signal(signal.SIGINT)
        recorder.communicate(timeout=PATIENCE_S)
        plan = host.ctl("plan")
        shown = {
            "journal": host.log.read_text(),
            "status": host.get("/v1/status").text,
            "metrics": host.get("/metrics").text,
            "plan": plan.stdout + plan.stderr,
            "trace": trace.read_text(),
            "state": "".join(p.read_text() for p in (host.home / "state").rglob("*.json")),
            "gate": (host.home / "run/gateway/gate.json").read_text(),
            "doors": (host.home / "run/gateway/haproxy.cfg").read_text(),
        }
        assert not [name for name, text in shown.items() if KEY in text]
