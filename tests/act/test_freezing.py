"""Freezing with a real systemd: everything stands still, and what thaws it does not depend on us.

Run in the box by tests/system/test_launcher.py; the direct launcher offers no freeze.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial

import pytest

from arbiterd.act.executor import Executor
from arbiterd.act.launch import freezer
from arbiterd.errors import LaunchError
from arbiterd.linux.systemd_bus import Bus
from arbiterd.model.actions import FreezeBackend, StopBackend
from arbiterd.model.launch import UnitState
from tests.act.test_executor import ended
from tests.act.test_launcher_contract import FAMILY, IN_BOX, SLEEP, Bench, _family, bench
from tests.support import wait_until

__all__ = ["bench"]
pytestmark = pytest.mark.skipif(
    "systemd" not in IN_BOX,
    reason="needs systemd: tests/system/test_launcher.py runs it in the box",
)

# Main and child note the longest time between two of their own steps.
BEATS = """
import os, sys, time
home = sys.argv[1]
who = 'main' if os.fork() else 'child'
last, longest = time.monotonic(), 0.0
while True:
    now = time.monotonic()
    if now - last > longest:
        longest = now - last
        open(f'{home}/{who}.new', 'w').write(f'{longest}')
        os.replace(f'{home}/{who}.new', f'{home}/{who}.longest')
    last = now
    time.sleep(0.005)
"""
# A daemon of its own that freezes, to be killed while it waits.
FREEZES = """
import sys
from pathlib import Path
from arbiterd.act.launch.systemd import SystemdLauncher
launcher = SystemdLauncher(Path(sys.argv[1]), lambda: None)
launcher.adopt()
launcher.freeze('probe', float(sys.argv[2]))
"""


def _longest(bench: Bench, who: str) -> float:
    path = bench.home / f"{who}.longest"
    return float(path.read_text()) if path.exists() else 0.0


def _paused(bench: Bench, who: str) -> bool:
    return _longest(bench, who) >= 0.75


def _beats(bench: Bench) -> None:
    bench.launcher.start(bench.spec(BEATS))
    wait_until(lambda: _longest(bench, "main") and _longest(bench, "child"), 10)
    bench.wait(UnitState.RUNNING)


def _frozen(bench: Bench) -> bool:
    found = bench.see()
    return found is not None and found.frozen


def _timers() -> list[str]:
    with closing(Bus()) as bus:
        return [name for name, _ in bus.list_units(f"{freezer.THAW_PREFIX}*.timer")]


def test_a_freeze_stops_every_process_of_the_unit_for_so_long(bench: Bench) -> None:
    """Main and child make no step; afterwards they go on, and no timer is left."""
    _beats(bench)
    assert bench.launcher.can_freeze
    began = time.monotonic()
    bench.launcher.freeze("probe", 0.8)
    took = time.monotonic() - began
    assert 0.8 <= took < 8.0
    assert not _frozen(bench)
    for who in ("main", "child"):
        wait_until(partial(_paused, bench, who), 50, f"{who} to note the pause")
        assert _longest(bench, who) < took + 3.0
    wait_until(lambda: not _timers(), 30, "the timer to be taken back")


def test_the_timer_thaws_when_who_froze_was_killed(bench: Bench) -> None:
    """SIGKILL while frozen: systemd's timer thaws at the time that was said before."""
    _beats(bench)
    argv = [sys.executable, "-c", FREEZES, str(bench.home / "run"), "1.0"]
    with subprocess.Popen(argv) as daemon:
        wait_until(lambda: _frozen(bench), 20, "the freeze")
        assert _timers() == [f"{freezer.THAW_PREFIX}probe.timer"], "armed before"
        daemon.kill()
        assert daemon.wait(5) == -signal.SIGKILL
    assert _frozen(bench), "nobody else thaws it"
    wait_until(lambda: not _frozen(bench), 30, "the timer")
    wait_until(lambda: _longest(bench, "main") >= 0.9, 50, "the process to go on")


def test_adoption_thaws(bench: Bench) -> None:
    """A new daemon finds a unit frozen by one that is gone: it thaws before anything else."""
    _beats(bench)
    argv = [sys.executable, "-c", FREEZES, str(bench.home / "run"), "2.0"]
    with subprocess.Popen(argv) as daemon:
        wait_until(lambda: _frozen(bench), 20, "the freeze")
        daemon.kill()
        daemon.wait(5)
    assert _frozen(bench)
    bench.launcher.close()
    bench.launcher = bench.again()
    assert _timers(), "it was not the timer that thawed"
    assert not _frozen(bench)
    bench.wait(UnitState.RUNNING)


def test_a_frozen_unit_is_stopped_at_once_and_in_order(bench: Bench) -> None:
    """stop() thaws first: the main process gets its SIGTERM; the freeze under way gives up."""
    bench.launcher.start(bench.spec(FAMILY))
    _family(bench)
    bench.wait(UnitState.RUNNING)
    froze = threading.Thread(target=bench.launcher.freeze, args=("probe", 2.0))
    froze.start()
    wait_until(lambda: _frozen(bench), 50, "the freeze")
    bench.launcher.stop("probe", 5.0)
    assert (bench.home / "main").exists(), "SIGTERM reached it"
    froze.join(30)
    assert not froze.is_alive()
    wait_until(lambda: bench.see() is None, 50, "to be forgotten")


def test_what_is_being_stopped_is_not_frozen(bench: Bench) -> None:
    """A freeze that comes late must not keep a draining engine from its end."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    bench.launcher.start(bench.spec(code, stop_grace_s=30.0))
    bench.wait(UnitState.RUNNING)
    wait_until(lambda: any("up" in line for line in bench.launcher.tail("probe", 5)), 10)
    ends = threading.Thread(target=bench.launcher.stop, args=("probe", 1.0))
    ends.start()
    bench.wait(UnitState.STOPPING)
    with pytest.raises(LaunchError, match="being stopped"):
        bench.launcher.freeze("probe", 1.0)
    ends.join(20)
    assert not ends.is_alive()


def test_killing_a_frozen_unit_needs_no_thaw(bench: Bench) -> None:
    """Grace 0 while frozen from outside: gone."""
    bench.launcher.start(bench.spec(SLEEP))
    bench.wait(UnitState.RUNNING)
    subprocess.run(["systemctl", "freeze", "gpu-arbiter-backend-probe"], check=True)
    wait_until(lambda: _frozen(bench), 5, "the freeze")
    bench.launcher.stop("probe", 0.0)
    wait_until(lambda: bench.see() is None, 50, "to be forgotten")


def test_thaw_is_for_whoever_froze_it(bench: Bench) -> None:
    """Frozen by hand: thaw thaws; what is not frozen, or not there, is fine."""
    bench.launcher.start(bench.spec(SLEEP))
    bench.wait(UnitState.RUNNING)
    bench.launcher.thaw("probe")
    bench.launcher.thaw("nobody")
    subprocess.run(["systemctl", "freeze", "gpu-arbiter-backend-probe"], check=True)
    wait_until(lambda: _frozen(bench), 5, "the freeze")
    bench.launcher.thaw("probe")
    assert not _frozen(bench)


def test_what_is_not_there_is_not_frozen(bench: Bench) -> None:
    """A sentence, and no timer stays."""
    with pytest.raises(LaunchError, match="cannot freeze nobody"):
        bench.launcher.freeze("nobody", 0.5)
    wait_until(lambda: not _timers(), 3, "the timer to be taken back")


def test_a_freeze_holds_up_no_stop_of_its_card(bench: Bench) -> None:
    """The executor's lanes: the neighbour is stopped while this one is frozen."""
    bench.launcher.start(bench.spec(SLEEP))
    bench.launcher.start(bench.spec(SLEEP, "other"))
    bench.wait(UnitState.RUNNING)
    bench.wait(UnitState.RUNNING, "other")
    executor = Executor(bench.launcher, lambda _: None, lambda: None)
    executor.apply([FreezeBackend("f", "probe", "GPU-1", "r", 2.0)])
    wait_until(lambda: _frozen(bench), 5, "the freeze")
    executor.apply([StopBackend("s", "other", "GPU-1", "r", 5.0)])
    out = ended(executor, 2)
    executor.close()
    assert [one.action.id for one in out] == ["s", "f"]
    assert all(one.ok for one in out)
    assert out[1].took_ms >= 2000
