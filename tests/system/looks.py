"""Looks at a started host that change nothing: many facts share one start."""

from __future__ import annotations

import json

from arbiterd.model.events import EventName
from arbiterd.report.catalogue import message_id
from tests.support import wait_until
from tests.system.conftest import Box

CTL = "/opt/gpu-arbiter/bin/arbiterctl"
GATEWAY, GATE = "gpu-arbiter-gateway.service", "gpu-arbiter-gate.service"
ENGINES = ("gpu-arbiter-backend-vllm", "gpu-arbiter-backend-ollama")
# systemd's own measure, 0 (safe) to 10 (exposed); a backend of 0.2.0 had 8.7
MOST = {
    "gpu-arbiter": 2.5,
    "gpu-arbiter-gateway": 1.5,
    "gpu-arbiter-gate": 1.5,
    **dict.fromkeys(ENGINES, 4.0),
}
NEVER = ("MemoryDenyWriteExecute", "PrivateDevices", "PrivateUsers")
CHAT = {"model": "Qwen/Qwen2.5-3B-Instruct", "prompt": "x", "max_tokens": 2}
OLLAMA = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 2}}
COMPLETE, GENERATE = "http://127.0.0.1:8000/v1/completions", "http://127.0.0.1:11434/api/generate"


def ask(box: Box, url: str, body: object = None) -> int:
    """One request inside the box: the status of the answer, 0 for none."""
    given = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    argv = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"]
    return int(box.run(*argv, *given, url).stdout or 0)


def exposure(box: Box, unit: str) -> float:
    """What systemd-analyze security makes of a unit."""
    text = box.sh(f"systemd-analyze security --no-pager {unit}.service | tail -1")
    return float(text.split(f"for {unit}.service:")[1].split()[0])


def engines_are_units_of_their_own(box: Box) -> None:
    """READY=1, engines in the slice as gpu-engines, attribution by cgroup, status for people."""
    assert box.show("gpu-arbiter", "ActiveState") == "active"
    wait_until(
        lambda: "mode A: vllm ready, ollama ready" in box.show("gpu-arbiter", "StatusText"), 10
    )
    for unit in ENGINES:
        assert box.show(unit, "Slice") == "gpu-arbiter.slice"
        assert box.show(unit, "KillMode") == "mixed"
        assert box.show(unit, "User") == "gpu-engines"
        assert box.sh(f"stat -c %U /proc/{box.show(unit, 'MainPID')}") == "gpu-engines"
    status = box.status()
    assert status["launcher"] == "systemd"
    rows = {row["holder"]: row for row in status["gpus"][0]["ledger"]}
    assert 10 << 30 < rows["vllm"]["used"] <= rows["vllm"]["cap"]
    assert rows["foreign"]["used"] == rows["unattributed"]["used"] == 0


def events_are_native_entries(box: Box) -> None:
    """MESSAGE_ID, ARBITER_*; journalctl -x explains; the engine's own output is under its unit."""
    entry = box.event("ready", backend="vllm")
    assert entry["MESSAGE_ID"] == message_id(EventName.READY)
    assert entry["SYSLOG_IDENTIFIER"] == "gpu-arbiter"
    assert entry["PRIORITY"] == "6"
    assert entry["ARBITER_MODE"] == "A"
    assert entry["_SYSTEMD_UNIT"] == "gpu-arbiter.service"
    assert int(entry["ARBITER_TOOK_MS"]) > 0
    assert box.event("start", backend="vllm")["ARBITER_ACTION"].startswith("act-")
    explained = box.sh("journalctl -x --no-pager -t gpu-arbiter ARBITER_EVENT=ready | head -20")
    assert "The engine answers its health URL and takes work." in explained
    own = box.sh("journalctl --no-pager -o cat -u gpu-arbiter-backend-vllm")
    assert "Application startup complete" in own


def the_admin_socket_is_for_root_and_the_group(box: Box) -> None:
    """Others may not open it; reading over TCP they may. Root reads by arbiterctl, a member is told what
    only root may write.
    """
    assert box.sh("stat -c '%a %G' /run/gpu-arbiter/admin.sock") == "660 gpu-arbiter"
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534")
    other = box.run(*nobody, "--clear-groups", CTL, "drain", "vllm")
    assert other.returncode == 69
    assert "group gpu-arbiter" in other.stderr
    code = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}")
    assert box.run(*code, "http://127.0.0.1:9480/v1/status").stdout == "200"
    stop = box.run(*code, "-X", "POST", "http://127.0.0.1:9480/v1/admin/stop-all")
    assert stop.stdout == "404"
    assert json.loads(box.sh(f"{CTL} status --json"))["mode"] == "A"
    group = box.sh("getent group gpu-arbiter | cut -d: -f3")
    done = box.run(*nobody, "--groups", group, CTL, "mode", "B")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "you may not write /etc/gpu-arbiter.toml; run: sudo arbiterctl mode B" in done.stderr
    assert box.status()["mode"] == "A"


def units_are_what_systemd_wants(box: Box) -> None:
    """verify prints nothing; each unit is as closed as it is said to be, by systemd-analyze security;
    what would break CUDA is set nowhere.
    """
    assert box.run("systemd-analyze", "verify", "gpu-arbiter.service").stderr.strip() == ""
    found = {unit: exposure(box, unit) for unit in MOST}
    assert all(found[unit] <= most for unit, most in MOST.items()), found
    for unit in ENGINES:
        for name in NEVER:
            assert box.show(unit, name) == "no"
        assert box.show(unit, "ProcSubset") == "all"
        assert box.show(unit, "DevicePolicy") == "closed"
        assert box.show(unit, "LimitCORE") == box.show(unit, "LimitCORESoft") == "0"
    rows = json.loads(
        box.sh("systemd-analyze security --json=short gpu-arbiter-backend-ollama.service")
    )
    assert {row["set"] for row in rows if row["name"] == "SystemCallFilter=~@mount"} == {True}


def doors_run_as_users_that_cannot_operate_the_daemon(box: Box) -> None:
    """haproxy and gpu-arbiter-gate read the doors' files; admin.sock and state are not theirs."""
    for unit, user in ((GATEWAY, "haproxy"), (GATE, "gpu-arbiter-gate")):
        assert box.show(unit, "ActiveState") == "active"
        assert box.show(unit, "User") == user
        assert box.show(unit, "Slice") != "gpu-arbiter.slice"
        shut = box.run("setpriv", "--reuid", user, "--regid", "gpu-arbiter-gw", "--clear-groups",
                       "test", "-w", "/run/gpu-arbiter/admin.sock")  # fmt: skip
        assert shut.returncode != 0, user
    assert box.sh("stat -c '%a %G' /run/gpu-arbiter/gateway/live.map") == "640 gpu-arbiter-gw"
    assert ask(box, COMPLETE, CHAT) == 200
    assert ask(box, GENERATE, OLLAMA) == 200
    assert ask(box, "http://127.0.0.1:8080/v1/completions", CHAT) == 200
    assert ask(box, "http://127.0.0.1:8000/health") == 200
