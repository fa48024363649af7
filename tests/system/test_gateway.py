"""The doors under a real systemd: units and users of their own, repaired whoever restarts them."""

from __future__ import annotations

import json

import pytest

from tests.support import wait_until
from tests.system.conftest import Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
GATEWAY, GATE = "gpu-arbiter-gateway.service", "gpu-arbiter-gate.service"


def ask(box: Box, url: str, body: object = None) -> tuple[int, dict[str, str], str]:
    """One request inside the box: status (0: no answer), headers by lower-case name, body."""
    given = [] if body is None else ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = box.run("curl", "-sS", "-m", "20", "-D", "-", *given, url)
    top, _, text = done.stdout.partition("\n\n")  # text mode has made them of \r\n
    first, *rest = top.splitlines() or ["HTTP/1.1 0"]
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest)}
    return int(first.split()[1]), headers, text


CHAT = {"model": "Qwen/Qwen2.5-3B-Instruct", "prompt": "x", "max_tokens": 2}
OLLAMA = {"model": "qwen2.5:3b", "prompt": "x", "stream": False, "options": {"num_predict": 2}}


def test_doors_and_gate_run_as_users_that_cannot_operate_the_daemon(box: Box) -> None:
    """haproxy and gpu-arbiter-gate read the doors' files; admin.sock and state are not theirs."""
    box.start()
    for unit, user in ((GATEWAY, "haproxy"), (GATE, "gpu-arbiter-gate")):
        assert box.show(unit, "ActiveState") == "active"
        assert box.show(unit, "User") == user
        assert box.show(unit, "Slice") != "gpu-arbiter.slice"
        shut = box.run("setpriv", "--reuid", user, "--regid", "gpu-arbiter-gw", "--clear-groups",
                       "test", "-w", "/run/gpu-arbiter/admin.sock")  # fmt: skip
        assert shut.returncode != 0, user
    assert box.sh("stat -c '%a %G' /run/gpu-arbiter/gateway/live.map") == "640 gpu-arbiter-gw"
    assert ask(box, "http://127.0.0.1:8000/v1/completions", CHAT)[0] == 200
    assert ask(box, "http://127.0.0.1:11434/api/generate", OLLAMA)[0] == 200
    assert ask(box, "http://127.0.0.1:8080/v1/completions", CHAT)[0] == 200
    assert ask(box, "http://127.0.0.1:8000/health")[0] == 200


def test_whoever_restarts_or_reloads_the_gateway_it_comes_back_in_order(box: Box) -> None:
    """By hand, by needrestart, by a crash: state and limits are there again."""
    box.start()
    for command in (
        f"systemctl restart {GATEWAY}",
        f"systemctl reload {GATEWAY}",
        f"systemctl kill -s KILL {GATEWAY}",
        f"systemctl kill -s KILL {GATE}",
    ):
        box.sh(command)
        box.wait_ready()
        wait_until(
            lambda: ask(box, "http://127.0.0.1:8000/v1/completions", CHAT)[0] == 200, 15, command
        )
        assert box.show(GATEWAY, "ActiveState") == "active"
        wait_until(
            lambda: ask(box, "http://127.0.0.1:11434/api/generate", OLLAMA)[0] == 200, 15, command
        )


@pytest.mark.parametrize(
    ("unit", "url", "body"),
    [
        (GATE, "http://127.0.0.1:11434/api/generate", OLLAMA),
        (GATEWAY, "http://127.0.0.1:8000/v1/completions", CHAT),
    ],
)
def test_a_hung_gate_and_a_hung_haproxy_are_replaced(
    box: Box, unit: str, url: str, body: object
) -> None:
    """SIGSTOP to all of its processes; systemd alone would never see it (HAProxy sends no watchdog)."""
    box.start()
    box.wait_ready()
    before = box.show(unit, "MainPID")
    box.sh(f"systemctl kill -s STOP {unit}")
    wait_until(lambda: box.show(unit, "MainPID") not in (before, "0"), 60, unit)
    box.wait_ready()
    wait_until(lambda: ask(box, url, body)[0] == 200, 30, url)
    assert box.show(unit, "WatchdogUSec") in ("0", "infinity")


def test_the_doors_outlive_a_crash_of_the_daemon_and_end_with_a_stop(box: Box) -> None:
    """Same HAProxy before and after; `systemctl stop` ends it last, also with a dead daemon."""
    box.start()
    before = box.show(GATEWAY, "MainPID"), box.show(GATE, "MainPID")
    box.sh("systemctl kill -s KILL gpu-arbiter")
    assert ask(box, "http://127.0.0.1:8000/v1/completions", CHAT)[0] == 200
    box.wait_ready()
    assert (box.show(GATEWAY, "MainPID"), box.show(GATE, "MainPID")) == before
    box.sh("systemctl stop gpu-arbiter")
    for unit in (GATEWAY, GATE):
        assert box.show(unit, "ActiveState") == "inactive"
    box.start()
    box.sh("systemctl kill -s KILL gpu-arbiter; systemctl stop gpu-arbiter")
    for unit in (GATEWAY, GATE):
        wait_until(lambda unit=unit: box.show(unit, "ActiveState") == "inactive", 10, unit)  # type: ignore[misc]
    assert box.pids() == {}


def test_a_removed_runtime_dir_costs_neither_an_engine_nor_a_door(box: Box) -> None:
    """The daemon ends, systemd makes the folder anew, engines are adopted by their units alone. A reload
    of HAProxy is refused as long as its files are behind what it was told.
    """
    box.start()
    before, door = box.pids(), box.show(GATEWAY, "MainPID")
    box.sh("rm -rf /run/gpu-arbiter")
    wait_until(
        lambda: box.run("test", "-e", "/run/gpu-arbiter/gateway/current").returncode == 0, 60, "it"
    )
    box.wait_ready()
    box.kept(before)
    assert box.show(GATEWAY, "MainPID") == door
    assert ask(box, "http://127.0.0.1:8000/v1/completions", CHAT)[0] == 200
    assert ask(box, "http://127.0.0.1:11434/api/generate", OLLAMA)[0] == 200
    said = box.sh("journalctl -u gpu-arbiter --no-pager -o cat")
    assert "/run/gpu-arbiter was removed: the daemon ends, engines run on" in said
    assert box.run("systemctl", "reload", GATEWAY).returncode == 0
    box.sh("systemctl kill -s STOP gpu-arbiter; rm /run/gpu-arbiter/gateway/current")
    assert box.run("systemctl", "reload", GATEWAY).returncode != 0
    assert box.show(GATEWAY, "ActiveState") == "active"
    box.sh("systemctl kill -s CONT gpu-arbiter")
