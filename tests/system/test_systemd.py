"""gpu-arbiter under a real systemd: start, restart, crash, watchdog, freezer, stop, journal.

A start of the whole host is what costs here: each test makes one and goes on from state to state.
"""

from __future__ import annotations

import time

import pytest

from tests.support import wait_until
from tests.system import looks
from tests.system.conftest import Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

VLLM = "gpu-arbiter-backend-vllm"
UNITS = "systemctl list-units --all --no-legend 'gpu-arbiter-backend-*' || true"


def test_a_started_host_is_what_the_docs_say(box: Box) -> None:
    """Units, users, journal, sockets, sandboxes, doors: one start, looks that change nothing."""
    box.start()
    looks.engines_are_units_of_their_own(box)
    looks.events_are_native_entries(box)
    looks.units_are_what_systemd_wants(box)
    looks.doors_run_as_users_that_cannot_operate_the_daemon(box)
    looks.the_admin_socket_is_for_root_and_the_group(box)


def _freeze(box: Box) -> None:
    box.sh(f"systemctl freeze {VLLM}")
    assert box.show(VLLM, "FreezerState") == "frozen"


def _followers(box: Box) -> set[str]:
    """Pids of journalctl -k -f in the daemon's own cgroup."""
    listed = box.sh(
        "for p in $(cat /sys/fs/cgroup$(systemctl show -P ControlGroup gpu-arbiter)/cgroup.procs); do"
        " tr '\\0' ' ' < /proc/$p/cmdline | grep -q '^[^ ]*journalctl -k -f' && echo $p; done; true"
    )
    return set(listed.split())


def _restarted(box: Box, before: dict[str, list[int]]) -> None:
    """systemctl restart: the daemon asks systemd for its own job, so the engines are kept."""
    box.sh("systemctl restart gpu-arbiter")
    box.wait_ready()
    box.kept(before)


def _killed(box: Box, before: dict[str, list[int]]) -> None:
    """SIGKILL: nothing stays frozen even before systemd brings the daemon back; that adopts, starts
    nothing, and has a follower of the kernel log of its own.
    """
    wait_until(lambda: len(_followers(box)) == 1, 10, "one follower")
    first = _followers(box)
    assert box.sh(f"ls -l /proc/{next(iter(first))}/fd | grep -c /journal/ || true") != "0"
    starts = len(box.journal("ARBITER_EVENT=start"))
    _freeze(box)
    since = time.time()
    box.sh("systemctl kill -s KILL gpu-arbiter")
    wait_until(lambda: box.show(VLLM, "FreezerState") == "running", 10, "the thaw")
    box.event("adopted", since, backend="vllm")
    box.wait_ready()
    box.kept(before)
    assert len(box.journal("ARBITER_EVENT=start")) == starts
    assert int(box.show("gpu-arbiter", "NRestarts")) >= 1
    wait_until(lambda: len(_followers(box)) == 1, 10, "one follower")
    assert _followers(box) != first


def _missed_its_watchdog(box: Box, before: dict[str, list[int]]) -> None:
    """SIGSTOP: no finished tick, no WATCHDOG=1; systemd aborts and restarts it; engines go on."""
    pid, since = box.show("gpu-arbiter", "MainPID"), time.time()
    box.sh(f"kill -STOP {pid}")
    wait_until(lambda: box.show("gpu-arbiter", "MainPID") not in (pid, "0"), 40, "a new daemon")
    box.event("adopted", since, backend="vllm")
    box.wait_ready()
    box.kept(before)
    assert "Watchdog timeout" in box.journal_text()


def _restarted_on_a_bad_file(box: Box, before: dict[str, list[int]]) -> None:
    """Exit 78 would leave living engines unguarded: the last good file stays in force, STATUS= tells it."""
    good, since = box.config(), time.time()
    box.config(good.replace('"55%"', "55"))
    box.sh("systemctl restart gpu-arbiter")
    box.event("config_refused", since)
    box.wait_ready()
    box.kept(before)
    wait_until(lambda: "config refused: " in box.show("gpu-arbiter", "StatusText"), 10)
    box.config(good)


def test_engines_outlive_the_daemon_and_end_with_its_stop(box: Box) -> None:
    """Restart, SIGKILL, missed watchdog, restart on a bad file: the same processes. A stop ends them, a
    frozen one too, in order and not by a time-out.
    """
    box.start()
    before = box.warm_pids()
    _restarted(box, before)
    _freeze(box)
    box.sh("/opt/gpu-arbiter/bin/arbiterctl stop-post")  # no job of ours: the engines go on
    assert box.show(VLLM, "FreezerState") == "running"
    assert box.show(VLLM, "ActiveState") == "active"
    _killed(box, before)
    _missed_its_watchdog(box, before)
    _restarted_on_a_bad_file(box, before)
    _freeze(box)
    box.sh("systemctl stop gpu-arbiter")
    assert box.show("gpu-arbiter", "Result") == "success"
    assert box.sh(UNITS) == ""
    assert not [pid for pids in before.values() for pid in pids if box.alive(pid)]
    assert box.run("pgrep", "-f", "journalctl -k -f").returncode != 0


def test_stop_of_a_dead_daemon_stops_the_engines(box: Box) -> None:
    """ExecStopPost asks for the job: `stop` means the slice; it thaws the frozen one before."""
    box.start()
    before = box.warm_pids()
    _freeze(box)
    pid = box.show("gpu-arbiter", "MainPID")
    box.sh(f"systemctl stop --no-block gpu-arbiter; kill -KILL {pid} || true")
    wait_until(lambda: box.show("gpu-arbiter", "ActiveState") in ("inactive", "failed"), 60)

    def gone() -> bool:
        return not any(box.alive(pid) for pids in before.values() for pid in pids)

    wait_until(gone, 60, "the engines to be stopped")
    active = "systemctl list-units --state=active --no-legend 'gpu-arbiter-backend-*' || true"
    wait_until(lambda: not box.sh(active), 60, "their units to end")


def _killed_engine(box: Box) -> None:
    """SIGKILL of the API server: EngineCore goes too, its memory is back, it starts again."""
    before, since = box.warm_pids(), time.time()
    box.sh(f"kill -KILL {box.main_pid('vllm')}")
    exit_ = box.event("exit", since, backend="vllm")
    assert "signal 9" in exit_["MESSAGE"]
    wait_until(lambda: box.pids().get("vllm") not in ([], before["vllm"]), 30, "new processes")
    box.wait_ready()
    assert not [pid for pid in before["vllm"] if box.alive(pid)]
    box.kept({"ollama": before["ollama"]})
    recovered = box.event("recovered", since, backend="vllm")
    assert recovered["ARBITER_INCIDENT"] == exit_["ARBITER_INCIDENT"]
    story = box.sh(f"journalctl -x -t gpu-arbiter --since @{since:.6f} ARBITER_BACKEND=vllm")
    assert "Subject: A backend has ended" in story
    assert "Subject: A failed backend is cleaned up" in story
    assert "Subject: A backend is stopped" not in story
    assert "Subject: A backend is killed" not in story


def _ended_with_zero(box: Box) -> None:
    """EngineCore dies, the server ends with 0: the unit keeps the status, the reason is found."""
    core = box.sh(
        "for one in /proc/[0-9]*; do grep -qa 'vllm[_]core' $one/cmdline && basename $one; done; true"
    )
    since = time.time()
    box.sh(f"kill -KILL {core.split()[0]}")
    assert "exit code 0" in box.event("exit", since, backend="vllm")["MESSAGE"]
    box.event("ready", since, backend="vllm")
    box.wait_ready()


def _stopped_by_hand(box: Box) -> None:
    """systemctl stop of a backend is a person's will; resume brings it back."""
    since = time.time()
    box.sh("systemctl stop gpu-arbiter-backend-ollama")
    box.event("stopped_by_operator", since, backend="ollama")
    assert box.backends()["ollama"]["phase"] in ("stopped", "stopping")
    box.sh("/opt/gpu-arbiter/bin/arbiterctl resume ollama")
    box.wait_ready()


def test_engines_that_end_come_back_and_one_stopped_by_hand_stays(box: Box) -> None:
    """Cleaned up by their cgroup, the reason named; whoever stops a unit by hand means it."""
    box.start()
    _killed_engine(box)
    _ended_with_zero(box)
    _stopped_by_hand(box)


def test_a_bad_file_at_start_is_78_and_a_missing_program_a_sentence(box: Box) -> None:
    """Nothing launched, the problems in the journal, no restart, no loop of 203/EXEC."""
    good = box.config()
    box.config(good.replace('"55%"', "55"))
    assert box.run("systemctl", "start", "gpu-arbiter").returncode != 0
    assert box.show("gpu-arbiter", "ExecMainStatus") == "78"
    assert box.show("gpu-arbiter", "NRestarts") == "0"
    assert "modes.A.vllm.memory: 55 has no unit" in box.journal_text()
    assert box.sh(UNITS) == ""

    program = '"/opt/gpu-arbiter/current/venv/bin/python", "-m", "arbiterd.sim.engines.ollama"'
    assert program in good
    box.config(good.replace(program, '"/opt/nowhere/ollama"'))
    box.sh("systemctl start gpu-arbiter")
    wait_until(lambda: box.backends().get("vllm", {}).get("accepting"), 40, "vLLM to be ready")
    found = box.backends()["ollama"]
    assert found["phase"] == "waiting"
    assert "/opt/nowhere/ollama is not there" in found["reason"]
