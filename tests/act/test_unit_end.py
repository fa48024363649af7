"""The SIGKILL that ends a unit, and the podman at its end that it spares."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from arbiterd.act.launch import systemd_stop
from arbiterd.act.launch.containers import Containers
from arbiterd.act.launch.systemd_stop import UnitEnd
from arbiterd.linux.systemd_bus import Bus


class _Bus:
    """Tells what it is given, and keeps which units it was told to kill."""

    def __init__(self, **properties: object) -> None:
        self.properties = {"ControlGroup": "/its", **properties}
        self.killed: list[str] = []

    def unit_path(self, unit: str) -> str:
        return unit

    def get(self, path: str, interface: str, name: str) -> object:
        return self.properties[name]

    def kill(self, unit: str, *_: Any) -> None:
        self.killed.append(unit)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """One process, all that is in the unit's cgroup."""
    one = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(systemd_stop, "pids_of", lambda cgroup: (one.pid,))
    yield one
    one.kill()
    one.wait()


def _kill(bus: _Bus, folder: Path) -> None:
    UnitEnd(cast("Bus", bus), Containers(folder, podman=False)).kill_all("unit")


def test_the_podman_that_removes_its_container_is_spared(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """ExecStopPost= has begun after the launcher looked last: nothing is killed."""
    bus = _Bus(Delegate=True, SubState="stop-post")
    _kill(bus, tmp_path)
    assert process.poll() is None
    assert bus.killed == []


def test_a_podman_unit_that_runs_is_killed_by_identity(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """systemd's own kill would take a control process along that has started meanwhile."""
    bus = _Bus(Delegate=True, SubState="running")
    _kill(bus, tmp_path)
    assert process.wait(60) == -9
    assert bus.killed == []


def test_any_other_unit_is_killed_by_systemd(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Its whole cgroup at once; it has nothing to do at its end."""
    bus = _Bus(Delegate=False, SubState="stop-sigterm")
    _kill(bus, tmp_path)
    assert process.poll() is None
    assert bus.killed == ["unit"]
