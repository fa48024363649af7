"""A frozen engine is thawed by whoever comes next: stop-post, the next daemon, a stop."""

from __future__ import annotations

import pytest

from tests.support import wait_until
from tests.system.conftest import Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

VLLM = "gpu-arbiter-backend-vllm"


def _freeze(box: Box) -> None:
    box.sh(f"systemctl freeze {VLLM}")
    assert box.show(VLLM, "FreezerState") == "frozen"


def test_a_killed_daemon_leaves_nothing_frozen(box: Box, now: float) -> None:
    """stop-post thaws at once, before the next daemon is there; the engine keeps its processes."""
    box.start()
    before = box.pids()
    _freeze(box)
    box.sh("systemctl kill -s KILL gpu-arbiter")
    wait_until(lambda: box.show(VLLM, "FreezerState") == "running", 10, "the thaw")
    box.event("adopted", now, backend="vllm")
    box.wait_ready()
    box.kept(before)


def test_stop_post_alone_thaws(box: Box) -> None:
    """As the unit calls it: no job of ours, so the engines go on."""
    box.start()
    _freeze(box)
    box.sh("/opt/gpu-arbiter/bin/arbiterctl stop-post")
    assert box.show(VLLM, "FreezerState") == "running"
    assert box.show(VLLM, "ActiveState") == "active"


def test_stop_ends_a_frozen_engine(box: Box) -> None:
    """In order, not by a time-out."""
    box.start()
    before = box.pids()
    _freeze(box)
    box.sh("systemctl stop gpu-arbiter")
    assert box.show("gpu-arbiter", "Result") == "success"
    for pids in before.values():
        for pid in pids:
            assert not box.alive(pid)


def test_stop_of_a_dead_daemon_ends_a_frozen_engine(box: Box) -> None:
    """stop-post thaws before it stops the slice."""
    box.start()
    _freeze(box)
    pid = box.show("gpu-arbiter", "MainPID")
    box.sh(f"systemctl stop --no-block gpu-arbiter; kill -KILL {pid} || true")

    def alive() -> str:
        return box.sh(
            "systemctl list-units --state=active --no-legend 'gpu-arbiter-backend-*' || true"
        )

    wait_until(lambda: not alive(), 60, "the engines to be stopped")
