"""Switches, upgrades and reboots under a real systemd: what does not change keeps its processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.system.conftest import ROOT, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
CTL = "/opt/gpu-arbiter/bin/arbiterctl"


def mains(box: Box) -> dict[str, int]:
    """MainPID of both engines' units."""
    return {name: box.main_pid(name) for name in ("vllm", "ollama")}


def slow_start(box: Box, seconds: float) -> None:
    """VLLM's next starts take so long."""
    box.put("/sim/vllm.json", f'{{"start_delay_s": {seconds}}}')


def to_b(box: Box) -> None:
    """Edit the line, reload."""
    box.sh('sed -i \'s/^mode = "A"/mode = "B"/\' /etc/gpu-arbiter.toml')
    box.sh("systemctl reload gpu-arbiter")


def wait_mode(box: Box, mode: str) -> None:
    """In force, and both take work."""

    def there() -> bool:
        found = box.status()
        both = [b["accepting"] for b in found["backends"]]
        return bool(
            found.get("mode") == mode and found.get("switch") is None and both == [True] * 2
        )

    wait_until(there, 60, f"mode {mode}")


def test_mode_switches_and_systemctl_status_tells_how_far_it_is(box: Box) -> None:
    """One command: the line is edited, STATUS= counts, Ollama's process stays."""
    box.start()
    before = mains(box)
    slow_start(box, 4)
    box.sh(f"{CTL} mode B --no-wait")
    told = re.compile(r"switching A → B: vllm \w+ \(0 of 1 done\), about ")
    wait_until(lambda: told.search(box.show("gpu-arbiter", "StatusText")), 10, "STATUS=")
    wait_mode(box, "B")
    assert box.sh("grep -m1 ^mode /etc/gpu-arbiter.toml") == 'mode = "B"'
    assert box.sh("stat -c '%U:%G %a' /etc/gpu-arbiter.toml") == "root:root 644"
    after = mains(box)
    assert after["ollama"] == before["ollama"]
    assert after["vllm"] != before["vllm"]
    wait_until(lambda: box.show("gpu-arbiter", "StatusText").startswith("mode B: "), 10)


def test_a_member_of_the_group_is_told_the_line_to_run(box: Box) -> None:
    """May ask the daemon, may not write the file: nothing changes."""
    box.start()
    group = box.sh("getent group gpu-arbiter | cut -d: -f3")
    who = ("setpriv", "--reuid", "65534", "--regid", "65534", "--groups", group)
    done = box.run(*who, CTL, "mode", "B")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "you may not write /etc/gpu-arbiter.toml; run: sudo arbiterctl mode B" in done.stderr
    assert box.status()["mode"] == "A"


@pytest.mark.parametrize(
    "how", ["systemctl restart gpu-arbiter", "systemctl kill -s KILL gpu-arbiter"]
)
def test_the_daemon_goes_in_the_middle_of_a_switch(box: Box, how: str, now: float) -> None:
    """Restarted by hand or killed while vLLM starts on its new card: that start goes on, with its
    process; the switch comes through.
    """
    box.start()
    before = mains(box)
    slow_start(box, 6)
    to_b(box)
    box.event("stop", now, backend="vllm")
    wait_until(lambda: box.main_pid("vllm") not in (0, before["vllm"]), 20, "the new vLLM")
    starting = box.main_pid("vllm")
    box.sh(how)
    wait_mode(box, "B")
    assert mains(box) == {"vllm": starting, "ollama": before["ollama"]}
    assert box.status()["last_switch"]["outcome"] == "in_force"


def test_a_layout_that_does_not_come_up_is_rolled_back(box: Box, now: float) -> None:
    """An argument that vLLM does not know, in mode B only: A is back, the line too, the unit is well."""
    good = box.config()
    bad = good.replace(
        'vllm = { gpu = 1, memory = "75%" }',
        'vllm = { gpu = 1, memory = "75%", command = ["/bin/false", "serve", "M"] }',
    )
    assert bad != good
    box.config(bad)
    box.start()
    before = mains(box)
    done = box.run(CTL, "mode", "B")
    assert done.returncode == 1
    assert "rolled back to mode A: vllm failed 2 times in it" in done.stderr
    wait_mode(box, "A")
    assert box.sh("cat /etc/gpu-arbiter.toml") == bad.strip()
    assert mains(box)["ollama"] == before["ollama"]
    assert box.event("rollback", now)["PRIORITY"] in ("3", "4", "5")


def test_a_stop_in_the_middle_of_a_switch_is_obeyed(box: Box, now: float) -> None:
    """systemctl stop while vLLM is on its way: within bounds, nothing is left; a start ends in B."""
    box.start()
    slow_start(box, 60)
    to_b(box)
    box.event("stop", now, backend="vllm")
    box.sh("systemctl stop gpu-arbiter")
    assert box.show("gpu-arbiter", "Result") == "success"
    units = "systemctl list-units --all --no-legend 'gpu-arbiter-backend-*' || true"
    assert box.sh(units) == ""
    slow_start(box, 0)
    box.sh("systemctl start gpu-arbiter")
    wait_mode(box, "B")


def test_a_timer_may_switch(box: Box) -> None:
    """The example units: verified, and the one that they start switches."""
    for name in ("gpu-arbiter-mode@.service", "gpu-arbiter-night.timer", "gpu-arbiter-day.timer"):
        box.put(f"/etc/systemd/system/{name}", (ROOT / "etc" / "systemd" / name).read_text())
    box.config(
        box.config() + '\n[modes.night]\nvllm = { gpu = 0, memory = "55%" }\nollama = { gpu = 1 }\n'
    )
    try:
        box.sh("systemctl daemon-reload")
        verified = box.run(
            "systemd-analyze", "verify", "gpu-arbiter-night.timer", "gpu-arbiter-day.timer",
            "gpu-arbiter-mode@night.service",
        )  # fmt: skip
        assert verified.stderr.strip() == ""
        box.start()
        vllm = box.main_pid("vllm")
        box.sh("systemctl start gpu-arbiter-mode@night.service")
        wait_mode(box, "night")
        assert box.main_pid("vllm") == vllm
        assert box.sh("grep -m1 ^mode /etc/gpu-arbiter.toml") == 'mode = "night"'
    finally:
        box.sh(
            "rm -f /etc/systemd/system/gpu-arbiter-*.timer '/etc/systemd/system/gpu-arbiter-mode@.service'"
        )
        box.sh("systemctl daemon-reload")


def _install(source: Path, tree: Path) -> None:
    environ = {**os.environ, "DESTDIR": str(tree), "PREFIX": "/opt/gpu-arbiter"}
    done = subprocess.run(
        [str(source / "scripts" / "install")],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_upgrade_restarts_no_engine(box: Box, tmp_path: Path) -> None:
    """Another version is installed over the running one, then systemctl restart: the daemon tells the
    new version, every process of the engines is the old one.
    """
    newer = tmp_path / "checkout"
    newer.mkdir()
    for name in ("arbiterd", "requirements", "scripts", "units", "etc", "docs"):
        shutil.copytree(ROOT / name, newer / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, newer / name)
    version = newer / "arbiterd" / "__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "9.9.9"', version.read_text()))
    box.start()
    before = box.pids()
    first = box.status()["version"]
    try:
        _install(newer, box.tree)
        box.sh("systemctl daemon-reload && systemctl restart gpu-arbiter")
        box.wait_ready()
        assert box.status()["version"] == "9.9.9" != first
        box.kept(before)
        starts = [e for e in box.journal("ARBITER_EVENT=start") if e["ARBITER_BACKEND"] == "vllm"]
        assert starts
    finally:
        _install(ROOT, box.tree)
        box.sh("systemctl restart gpu-arbiter")
    box.wait_ready()
    assert box.status()["version"] == first
    box.kept(before)


def test_a_reboot_brings_everything_back(box: Box) -> None:
    """An enabled unit, /etc and /var as they were: after the boot the mode of the file is up."""
    box.start()
    box.sh(f"{CTL} mode B")
    boot = box.sh("cat /proc/sys/kernel/random/boot_id")
    box.sh("systemctl enable gpu-arbiter")
    try:
        done = box._call("reboot", timeout_s=180)
        assert done.returncode == 0, done.stdout + done.stderr
        assert box.sh("cat /proc/sys/kernel/random/boot_id") != boot
        wait_mode(box, "B")
        assert box.show("gpu-arbiter", "NRestarts") == "0"
    finally:
        box.sh("systemctl disable gpu-arbiter")
