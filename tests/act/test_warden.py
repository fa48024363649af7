"""The direct launcher's wardens: bounded output, double-forked children, what a later daemon finds."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.act.launch import wardens
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.warden import LOG_MOST
from arbiterd.linux import procfs
from arbiterd.model.launch import Exit, LaunchSpec, UnitObservation, UnitState
from tests.support import wait_until

HIDE = (  # twice forked, a session of its own, nothing of the environment left; tells its pid in a file
    "import os, sys\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        os.execve(sys.executable, [sys.executable, '-c', "
    "'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(300)',"
    " sys.argv[1]], {})\n"
    "    os._exit(0)\n"
    "os.wait()\n"
)
STAY = HIDE + "import time; time.sleep(300)\n"
LEAVE = HIDE + "sys.exit(3)\n"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[DirectLauncher]:
    """A launcher whose backend is gone afterwards."""
    made = DirectLauncher(tmp_path / "run", lambda: None)
    yield made
    made.stop("probe", 0.0)
    made.close()


def again(tmp_path: Path) -> DirectLauncher:
    """A launcher of a later daemon on the same folder."""
    made = DirectLauncher(tmp_path / "run", lambda: None)
    made.adopt()
    return made


def spec(code: str, *words: str) -> LaunchSpec:
    """A piece of Python as a backend."""
    return LaunchSpec("probe", (sys.executable, "-u", "-c", code, *words), {}, "i1")


def seen(launcher: DirectLauncher) -> UnitObservation:
    """The backend now."""
    return launcher.observe(time.monotonic())["probe"]


def hidden(launcher: DirectLauncher, code: str, tmp_path: Path) -> int:
    """Start an engine whose grandchild hides; its pid."""
    told = tmp_path / "hidden"
    launcher.start(spec(code, str(told)))

    def pid() -> int:
        return int(told.read_text() or 0) if told.exists() else 0

    return wait_until(pid, 60, "the hidden child to tell its pid")


def test_a_child_that_hides_twice_forked_is_found_and_ended(
    launcher: DirectLauncher, tmp_path: Path
) -> None:
    """Own session, empty environment, parent gone: it is the engine's in pids and ledger, and goes with it."""
    pid = hidden(launcher, STAY, tmp_path)
    assert launcher.owner_of(pid) == ("probe", "session of probe")
    wait_until(lambda: pid in seen(launcher).pids, 60, "the hidden child among the pids")
    launcher.stop("probe", 5.0)
    assert procfs.ref(pid) is None


def test_it_is_found_by_a_later_daemon_too(tmp_path: Path) -> None:
    """Also after its engine has ended meanwhile, whose exit status is not lost."""
    first = DirectLauncher(tmp_path / "run", lambda: None)
    pid = hidden(first, LEAVE, tmp_path)
    first.close()
    later = again(tmp_path)
    try:
        wait_until(lambda: seen(later).state is UnitState.EXITED, 60, "the end of the engine")
        assert seen(later).exit == Exit(code=3)
        assert later.owner_of(pid) == ("probe", "session of probe")
        later.stop("probe", 5.0)
        assert procfs.ref(pid) is None
    finally:
        later.close()


@pytest.mark.parametrize("version", ["ours", "an earlier one"])
def test_without_its_folder_an_engine_is_adopted_by_its_warden(
    launcher: DirectLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """runtime_dir was removed: pid, invocation, intent and hidden children are known; the output goes on.
    An earlier version has its script in another folder.
    """
    if version != "ours":
        monkeypatch.setattr(
            wardens, "_SCRIPT", shutil.copy(wardens._SCRIPT, tmp_path / "warden.py")
        )
    pid = hidden(launcher, STAY, tmp_path)
    monkeypatch.undo()
    before = seen(launcher)
    shutil.rmtree(tmp_path / "run")
    later = again(tmp_path)
    try:
        after = seen(later)
        assert (after.main, after.invocation) == (before.main, before.invocation)
        assert after.state is UnitState.RUNNING
        assert after.intent == before.intent != ""
        assert later.owner_of(pid) == ("probe", "session of probe")
        wait_until((tmp_path / "run/logs/probe.log").exists, 60, "its log file anew")
        later.stop("probe", 5.0)
        assert procfs.ref(pid) is None
        assert before.main is not None
        assert not procfs.alive(before.main)
    finally:
        later.close()


def test_the_output_is_bounded_and_its_end_is_kept(
    launcher: DirectLauncher, tmp_path: Path
) -> None:
    """Three times what is kept, then some last words; the file before is replaced, not piled up."""
    total = 3 * 2 * LOG_MOST
    code = (
        "import sys\n"
        "line = b'x' * 1023 + b'\\n'\n"
        f"for _ in range({total // 1024}): sys.stdout.buffer.write(line)\n"
        "print('torch.OutOfMemoryError: the last words')\n"
        "sys.exit(7)"
    )
    launcher.start(spec(code))
    wait_until(lambda: seen(launcher).state is UnitState.EXITED, 120, "the end of the flood")
    assert seen(launcher).exit == Exit(code=7)
    assert launcher.tail("probe", 2)[-1] == "torch.OutOfMemoryError: the last words"
    logs = list((tmp_path / "run/logs").iterdir())
    assert sum(one.stat().st_size for one in logs) <= 2 * LOG_MOST
    assert len(launcher.tail("probe", 100)) == 100


def test_an_end_between_two_files_is_read_from_both(
    launcher: DirectLauncher, tmp_path: Path
) -> None:
    """Lines that were written before the file was full are not lost with it."""
    half = LOG_MOST - 3000
    code = f"import sys; sys.stdout.write('y' * {half} + '\\n')\nfor n in range(200): print('word', n, '.' * 20)"
    launcher.start(spec(code))
    wait_until(lambda: seen(launcher).state is UnitState.EXITED, 60, "its end")
    said = launcher.tail("probe", 200)
    assert [line.split()[1] for line in said] == [str(n) for n in range(200)]


def test_an_engine_never_waits_for_a_full_disk(launcher: DirectLauncher, tmp_path: Path) -> None:
    """A log that cannot be written: the output is dropped, the engine goes on to its end."""
    logs = tmp_path / "run/logs"
    (logs / "probe.log").symlink_to("/dev/full")
    (logs / "probe.log.1").mkdir()
    (logs / "probe.log.1" / "in the way").touch()
    launcher.start(spec("import sys; sys.stdout.write('z' * (1 << 20)); sys.exit(5)"))
    wait_until(lambda: seen(launcher).state is UnitState.EXITED, 60, "its end")
    assert seen(launcher).exit == Exit(code=5)


def test_a_warden_ends_with_the_last_process(launcher: DirectLauncher) -> None:
    """And SIGTERM or SIGHUP to all of a session group leave it at its work."""
    launcher.start(spec("import time; time.sleep(300)"))
    unit = launcher._units["probe"]
    warden = unit.record.roots.warden
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(warden.pid, number)
    assert procfs.alive(warden)
    ending = threading.Thread(target=launcher.stop, args=("probe", 5.0))
    ending.start()
    ending.join(60)
    assert not procfs.alive(warden)


def test_a_killed_warden_is_reaped_while_its_engine_goes_on(launcher: DirectLauncher) -> None:
    """No zombie of the daemon's for as long as the engine lives; the engine is guarded by its tag."""
    launcher.start(spec("import time; time.sleep(300)"))
    warden = launcher._units["probe"].record.roots.warden
    os.kill(warden.pid, signal.SIGKILL)

    def reaped() -> bool:
        unit = seen(launcher)
        return procfs.ref(warden.pid) != warden and unit.state is UnitState.RUNNING

    assert wait_until(reaped)
