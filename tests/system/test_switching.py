"""Switches, upgrades and reboots under a real systemd: what does not change keeps its processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.system.conftest import ROOT, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
CTL = "/opt/gpu-arbiter/bin/arbiterctl"


def mains(box: Box) -> dict[str, int]:
    """MainPID of both engines' units."""
    return {name: box.main_pid(name) for name in ("vllm", "ollama")}


def slow_start(box: Box, seconds: float) -> None:
    """VLLM's next starts take so long."""
    box.put("/sim/vllm.json", f'{{"start_delay_s": {seconds}}}')


def reload_to(box: Box, mode: str) -> None:
    """Edit the line, reload."""
    box.sh(f"sed -i 's/^mode = .*/mode = \"{mode}\"/' /etc/gpu-arbiter.toml")
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


# vLLM's argument is not known in C; in night Ollama moves and vLLM stays
MORE_MODES = """
[modes.C]
vllm = { gpu = 1, memory = "75%", command = ["/bin/false", "serve", "M"] }
ollama = { gpu = 0, memory = "20%" }

[modes.night]
vllm = { gpu = 0, memory = "55%" }
ollama = { gpu = 1 }
"""


def _a_bad_reload_fails(box: Box) -> None:
    """All reasons in the journal, nothing touched."""
    before, good = box.warm_pids(), box.sh("cat /etc/gpu-arbiter.toml")
    box.config(good.replace('mode = "A"', 'mode = "Z"'))
    assert box.run("systemctl", "reload", "gpu-arbiter").returncode != 0
    assert "unknown mode 'Z'" in box.journal_text()
    box.kept(before)
    box.config(good + "\n")


def _one_command_and_its_progress(box: Box) -> None:
    """The line is edited, STATUS= counts, Ollama's process stays."""
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
    slow_start(box, 0)


def _one_line_and_a_reload(box: Box) -> None:
    """VLLM moves back, Ollama stays."""
    before = mains(box)
    reload_to(box, "A")
    wait_mode(box, "A")
    after = mains(box)
    assert after["ollama"] == before["ollama"]
    assert after["vllm"] != before["vllm"]


def _rolled_back(box: Box) -> None:
    """A layout that does not come up: A is back, the line too, the unit is well."""
    before, text, since = mains(box), box.sh("cat /etc/gpu-arbiter.toml"), time.time()
    done = box.run(CTL, "mode", "C")
    assert done.returncode == 1
    assert "rolled back to mode A: vllm failed 2 times in it" in done.stderr
    wait_mode(box, "A")
    assert box.sh("cat /etc/gpu-arbiter.toml") == text
    assert mains(box)["ollama"] == before["ollama"]
    assert box.event("rollback", since)["PRIORITY"] in ("3", "4", "5")


def _a_timer_switches(box: Box) -> None:
    """The example units: verified, and the one that they start switches."""
    verified = box.run(
        "systemd-analyze", "verify", "gpu-arbiter-night.timer", "gpu-arbiter-day.timer",
        "gpu-arbiter-mode@night.service",
    )  # fmt: skip
    assert verified.stderr.strip() == ""
    vllm = box.main_pid("vllm")
    box.sh("systemctl start gpu-arbiter-mode@night.service")
    wait_mode(box, "night")
    assert box.main_pid("vllm") == vllm
    assert box.sh("grep -m1 ^mode /etc/gpu-arbiter.toml") == 'mode = "night"'


def test_modes_switch_by_command_reload_and_timer(box: Box) -> None:
    """From one start on: refused, done, rolled back; Ollama, whose layout is the same, is the same."""
    for name in ("gpu-arbiter-mode@.service", "gpu-arbiter-night.timer", "gpu-arbiter-day.timer"):
        box.put(f"/etc/systemd/system/{name}", (ROOT / "etc" / "systemd" / name).read_text())
    box.config(box.config() + MORE_MODES)
    try:
        box.sh("systemctl daemon-reload")
        box.start()
        _a_bad_reload_fails(box)
        _one_command_and_its_progress(box)
        _one_line_and_a_reload(box)
        _rolled_back(box)
        _a_timer_switches(box)
    finally:
        box.sh(
            "rm -f /etc/systemd/system/gpu-arbiter-*.timer '/etc/systemd/system/gpu-arbiter-mode@.service'"
        )
        box.sh("systemctl daemon-reload")


def _interrupted(box: Box, mode: str, how: str) -> None:
    """While vLLM starts on its new card: that start goes on, with its process; the switch comes through."""
    before, since = mains(box), time.time()
    reload_to(box, mode)
    box.event("stop", since, backend="vllm")
    wait_until(lambda: box.main_pid("vllm") not in (0, before["vllm"]), 20, "the new vLLM")
    starting = box.main_pid("vllm")
    box.sh(how)
    wait_mode(box, mode)
    assert mains(box) == {"vllm": starting, "ollama": before["ollama"]}
    assert box.status()["last_switch"]["outcome"] == "in_force"


def test_a_switch_survives_the_daemon_and_a_stop_and_a_reboot_end_in_its_mode(box: Box) -> None:
    """The daemon restarted by hand, then killed in the middle of a switch; systemctl stop in the middle:
    within bounds, nothing is left, a start ends in the new mode. After a reboot an enabled unit brings
    the mode of the file up, /etc and /var as they were.
    """
    box.start()
    slow_start(box, 6)
    _interrupted(box, "B", "systemctl restart gpu-arbiter")
    _interrupted(box, "A", "systemctl kill -s KILL gpu-arbiter")
    slow_start(box, 60)
    since = time.time()
    reload_to(box, "B")
    box.event("stop", since, backend="vllm")
    box.sh("systemctl stop gpu-arbiter")
    assert box.show("gpu-arbiter", "Result") == "success"
    units = "systemctl list-units --all --no-legend 'gpu-arbiter-backend-*' || true"
    assert box.sh(units) == ""
    slow_start(box, 0)
    box.sh("systemctl start gpu-arbiter")
    wait_mode(box, "B")

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


def _packages(tree: Path) -> Path:
    current = tree / "opt/gpu-arbiter/current"
    return next((current.resolve() / "venv/lib").glob("*/site-packages"))


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
    # the packages are the same ones: fetched and compiled once is enough
    (newer / "requirements" / "runtime.txt").write_text("")
    version = newer / "arbiterd" / "__init__.py"
    version.write_text(re.sub(r'__version__ = ".*"', '__version__ = "9.9.9"', version.read_text()))
    box.start()
    before = box.warm_pids()
    first = box.status()["version"]
    try:
        older = _packages(box.tree)
        _install(newer, box.tree)
        for one in older.iterdir():
            if not one.name.startswith(("arbiterd", "gpu_arbiter")):
                there = _packages(box.tree) / one.name
                if not there.exists():
                    subprocess.run(["cp", "-al", str(one), str(there)], check=True)
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
