"""What is read of a cgroup's files, as the kernel writes them (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.linux import cgroups

EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill {kills}\noom_group_kill 0\n"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup's folder below a root of the test's own."""
    folder = tmp_path / "gpu.slice" / "x.service"
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("7\n0\n")
    monkeypatch.setattr(cgroups, "_CGROUP_ROOTS", (str(tmp_path / "v1"), str(tmp_path)))
    return folder


def test_the_oom_killers_count(group: Path) -> None:
    """oom_kill, not oom (which counts attempts), 0 where the memory controller is not there."""
    assert cgroups.oom_kills_of("/gpu.slice/x.service") == 0
    (group / "memory.events").write_text(EVENTS.format(kills=0))
    assert cgroups.oom_kills_of("/gpu.slice/x.service") == 0
    (group / "memory.events").write_text(EVENTS.format(kills=2))
    assert cgroups.oom_kills_of("/gpu.slice/x.service") == 2
    assert cgroups.oom_kills_of("/gpu.slice/gone.service") == 0
    assert cgroups.oom_kills_of("") == 0


def test_frozen_is_what_the_kernel_has_reached(group: Path) -> None:
    """cgroup.events, not what was asked for (cgroup.freeze)."""
    (group / "cgroup.freeze").write_text("1\n")
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert not cgroups.frozen_of("/gpu.slice/x.service")
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroups.frozen_of("/gpu.slice/x.service")


def test_cpu_time_and_processes(group: Path) -> None:
    """Seconds from microseconds; pids of other namespaces read as 0 and are left out."""
    assert cgroups.cpu_s_of("/gpu.slice/x.service") == 0
    (group / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\n")
    assert cgroups.cpu_s_of("/gpu.slice/x.service") == 1.5
    assert cgroups.pids_of("/gpu.slice/x.service") == (7,)
