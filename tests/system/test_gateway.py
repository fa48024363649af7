"""The doors under a real systemd: repaired whoever breaks them, alive without the daemon."""

from __future__ import annotations

import os
import time

import pytest

from tests.support import wait_until
from tests.system.conftest import Box
from tests.system.looks import CHAT, COMPLETE, GATE, GATEWAY, GENERATE, OLLAMA, ask

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def _serve(box: Box, after: str) -> None:
    """Both doors answer."""
    wait_until(lambda: ask(box, COMPLETE, CHAT) == 200, 15, f"vLLM's door after {after}")
    wait_until(lambda: ask(box, GENERATE, OLLAMA) == 200, 15, f"Ollama's door after {after}")


def _hung(box: Box, unit: str) -> None:
    """SIGSTOP to all of its processes; systemd alone would never see it (HAProxy sends no watchdog). What
    broke before is over for the daemon too: else it would not be told as something new.
    """

    def whole() -> bool:
        seen = box.status().get("gateway", {"problem": "no daemon"})
        return not seen["problem"] and not seen.get("gate_problem")

    wait_until(whole, 30, "the gateway without a problem")
    before = box.show(unit, "MainPID")
    box.sh(f"systemctl kill -s STOP {unit}")
    wait_until(lambda: box.show(unit, "MainPID") not in (before, "0"), 60, unit)
    box.wait_ready()
    _serve(box, f"a hung {unit}")
    assert box.show(unit, "WatchdogUSec") in ("0", "infinity")


def test_whoever_breaks_the_gateway_it_comes_back_in_order(box: Box) -> None:
    """By hand, by needrestart, by a crash: state and limits are there again. A hung gate and a hung
    HAProxy are found by the probe, which users, groups and modes let through, and replaced.
    """
    box.start()
    for command in (
        f"systemctl restart {GATEWAY}",
        f"systemctl reload {GATEWAY}",
        f"systemctl kill -s KILL {GATEWAY}",
        f"systemctl kill -s KILL {GATE}",
    ):
        unit = command.rpartition(" ")[2]
        before = box.show(unit, "MainPID")
        box.sh(command)
        if "reload" not in command:
            wait_until(lambda: box.show(unit, "MainPID") not in (before, "0"), 60, command)  # noqa: B023
        box.wait_ready()
        _serve(box, command)
        assert box.show(GATEWAY, "ActiveState") == "active"
    socket = "/run/gpu-arbiter-gateway/probe.sock"
    assert box.sh(f"stat -c '%a %U %G' {socket}") == "660 haproxy gpu-arbiter-gw"
    since = time.time()
    _hung(box, GATE)
    box.event("gateway_down", since, said="the load gate does not answer")
    _hung(box, GATEWAY)


def test_the_doors_outlive_the_daemon_and_its_folder_and_end_with_a_stop(box: Box) -> None:
    """Same HAProxy and gate after a crash. With /run/gpu-arbiter removed the daemon ends, systemd makes
    the folder anew, engines are adopted by their units alone; a reload of HAProxy is refused as long as
    its files are behind what it was told. `systemctl stop` ends both last, also with a dead daemon.
    """
    box.start()
    engines = box.warm_pids()
    before = box.show(GATEWAY, "MainPID"), box.show(GATE, "MainPID")
    since = time.time()
    box.sh("systemctl kill -s KILL gpu-arbiter")
    assert ask(box, COMPLETE, CHAT) == 200
    box.event("adopted", since, backend="vllm")
    box.wait_ready()
    assert (box.show(GATEWAY, "MainPID"), box.show(GATE, "MainPID")) == before

    box.sh("until rm -rf /run/gpu-arbiter; do :; done")  # the daemon may write meanwhile
    folder = box.inside("/run/gpu-arbiter/gateway/current")
    wait_until(lambda: os.path.lexists(folder), 60, str(folder))
    box.wait_ready()
    box.kept(engines)
    assert box.show(GATEWAY, "MainPID") == before[0]
    _serve(box, "the removal")
    said = "/run/gpu-arbiter was removed: the daemon ends, engines run on"
    assert said in box.journal_text()
    assert box.run("systemctl", "reload", GATEWAY).returncode == 0
    box.sh("systemctl kill -s STOP gpu-arbiter; rm /run/gpu-arbiter/gateway/current")
    assert box.run("systemctl", "reload", GATEWAY).returncode != 0
    assert box.show(GATEWAY, "ActiveState") == "active"
    box.sh("systemctl kill -s CONT gpu-arbiter")

    box.sh("systemctl stop gpu-arbiter")
    for unit in (GATEWAY, GATE):
        assert box.show(unit, "ActiveState") == "inactive"
    box.start()
    box.sh("systemctl kill -s KILL gpu-arbiter; systemctl stop gpu-arbiter")
    for unit in (GATEWAY, GATE):
        wait_until(lambda unit=unit: box.show(unit, "ActiveState") == "inactive", 10, unit)  # type: ignore[misc]
    assert box.pids() == {}
