"""The kernel log's follower inside the hardened unit."""

from __future__ import annotations

import pytest

from tests.support import wait_until
from tests.system.conftest import Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def _followers(box: Box) -> set[str]:
    """Pids of journalctl -k -f in the daemon's own cgroup."""
    listed = box.sh(
        "for p in $(cat /sys/fs/cgroup$(systemctl show -P ControlGroup gpu-arbiter)/cgroup.procs); do"
        " tr '\\0' ' ' < /proc/$p/cmdline | grep -q '^[^ ]*journalctl -k -f' && echo $p; done; true"
    )
    return set(listed.split())


def test_one_follower_reads_the_kernel_log_and_ends_with_the_daemon(box: Box) -> None:
    """It runs under the unit's restrictions and can open the journal; killed with -9 the daemon
    leaves none behind, the next one has one of its own.
    """
    box.start()
    wait_until(lambda: len(_followers(box)) == 1, 10, "one follower")
    first = _followers(box)
    assert box.sh(f"ls -l /proc/{next(iter(first))}/fd | grep -c /journal/ || true") != "0"
    box.sh(f"kill -9 {box.show('gpu-arbiter', 'MainPID')}")
    box.wait_ready()
    wait_until(lambda: len(_followers(box)) == 1, 10, "one follower")
    assert _followers(box) != first
    box.sh("systemctl stop gpu-arbiter")
    assert box.run("pgrep", "-f", "journalctl -k -f").returncode != 0
