"""gpu-arbiter under a real systemd: install, start, reload, stop, restart, crash, watchdog, journal."""

from __future__ import annotations

import pytest

from arbiterd.model.events import EventName
from arbiterd.report.catalogue import message_id
from tests.support import wait_until
from tests.system.conftest import PYTHON, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_it_starts_engines_as_units_of_their_own(box: Box) -> None:
    """READY=1, engines in the slice as gpu-engines, attribution by cgroup, status for people."""
    box.start()
    assert box.show("gpu-arbiter", "ActiveState") == "active"
    wait_until(
        lambda: "mode A: vllm ready, ollama ready" in box.show("gpu-arbiter", "StatusText"), 10
    )
    for name in ("vllm", "ollama"):
        unit = f"gpu-arbiter-backend-{name}"
        assert box.show(unit, "Slice") == "gpu-arbiter.slice"
        assert box.show(unit, "KillMode") == "mixed"
        assert box.show(unit, "User") == "gpu-engines"
        assert box.sh(f"stat -c %U /proc/{box.main_pid(name)}") == "gpu-engines"
    status = box.status()
    assert status["launcher"] == "systemd"
    rows = {row["holder"]: row for row in status["gpus"][0]["ledger"]}
    assert 10 << 30 < rows["vllm"]["used"] <= rows["vllm"]["cap"]
    assert rows["foreign"]["used"] == rows["unattributed"]["used"] == 0
    assert box.sh("stat -c '%a %G' /run/gpu-arbiter/admin.sock") == "660 gpu-arbiter"


def test_events_are_native_journal_entries_with_fields(box: Box, now: float) -> None:
    """MESSAGE_ID, ARBITER_*; journalctl -x explains; the engine's own output is under its unit."""
    box.start()
    entry = box.event("ready", now, backend="vllm")
    assert entry["MESSAGE_ID"] == message_id(EventName.READY)
    assert entry["SYSLOG_IDENTIFIER"] == "gpu-arbiter"
    assert entry["PRIORITY"] == "6"
    assert entry["ARBITER_MODE"] == "A"
    assert entry["_SYSTEMD_UNIT"] == "gpu-arbiter.service"
    assert int(entry["ARBITER_TOOK_MS"]) > 0
    start = box.event("start", now, backend="vllm")
    assert start["ARBITER_ACTION"].startswith("act-")
    explained = box.sh("journalctl -x --no-pager -t gpu-arbiter ARBITER_EVENT=ready | head -20")
    assert "The engine answers its health URL and takes work." in explained
    own = box.sh("journalctl --no-pager -o cat -u gpu-arbiter-backend-vllm")
    assert "Application startup complete" in own


def test_restart_keeps_the_engines_and_stop_ends_them(box: Box) -> None:
    """The daemon asks systemd for its own job: exact every time."""
    box.start()
    before = box.pids()
    box.sh("systemctl restart gpu-arbiter")
    box.wait_ready()
    box.kept(before)
    box.sh("systemctl stop gpu-arbiter")
    assert box.show("gpu-arbiter", "Result") == "success"
    left = box.sh("systemctl list-units --all --no-legend 'gpu-arbiter-backend-*' || true")
    assert left == ""
    for pids in before.values():
        for pid in pids:
            assert not box.alive(pid)


def test_kill_9_of_the_daemon_changes_no_engine(box: Box, now: float) -> None:
    """systemd brings it back, it adopts: same pids, nothing started."""
    box.start()
    before = box.pids()
    starts = len(box.journal("ARBITER_EVENT=start"))
    box.sh("systemctl kill -s KILL gpu-arbiter")
    box.event("adopted", now, backend="vllm")
    box.wait_ready()
    box.kept(before)
    assert len(box.journal("ARBITER_EVENT=start")) == starts
    assert int(box.show("gpu-arbiter", "NRestarts")) >= 1


def test_a_missed_watchdog_restarts_the_daemon_only(box: Box, now: float) -> None:
    """SIGSTOP: no finished tick, no WATCHDOG=1; systemd aborts and restarts it; engines go on."""
    box.start()
    before = box.pids()
    pid = box.show("gpu-arbiter", "MainPID")
    box.sh(f"kill -STOP {pid}")
    wait_until(lambda: box.show("gpu-arbiter", "MainPID") not in (pid, "0"), 40, "a new daemon")
    box.event("adopted", now, backend="vllm")
    box.wait_ready()
    box.kept(before)
    assert "Watchdog timeout" in box.journal_text()


def test_a_bad_file_at_start_is_78_without_a_loop(box: Box) -> None:
    """Nothing launched, the problems in the journal, no restart."""
    good = box.config()
    box.config(good.replace('"55%"', "55"))
    assert box.run("systemctl", "start", "gpu-arbiter").returncode != 0
    assert box.show("gpu-arbiter", "ExecMainStatus") == "78"
    assert box.show("gpu-arbiter", "NRestarts") == "0"
    assert "modes.A.vllm.memory: 55 has no unit" in box.journal_text()
    assert box.sh("systemctl list-units --all --no-legend 'gpu-arbiter-backend-*' || true") == ""


def test_a_bad_file_at_restart_guards_living_engines(box: Box, now: float) -> None:
    """Exit 78 would leave them unguarded: the last good file stays in force, STATUS= says so."""
    good = box.config()
    box.start()
    before = box.pids()
    box.config(good.replace('"55%"', "55"))
    box.sh("systemctl restart gpu-arbiter")
    box.event("config_refused", now)
    box.wait_ready()
    box.kept(before)
    wait_until(lambda: "config refused: " in box.show("gpu-arbiter", "StatusText"), 10)


def test_reload_switches_the_mode_and_a_bad_one_fails(box: Box) -> None:
    """One line edited, systemctl reload: vLLM moves, Ollama stays. A bad file: reload fails, all
    reasons in the journal, nothing touched.
    """
    good = box.config()
    box.start()
    before = box.pids()
    box.config(good.replace('mode = "A"', 'mode = "Z"'))
    assert box.run("systemctl", "reload", "gpu-arbiter").returncode != 0
    assert "unknown mode 'Z'" in box.journal_text()
    box.kept(before)
    box.config(good.replace('mode = "A"', 'mode = "B"'))
    box.sh("systemctl reload gpu-arbiter")

    def moved() -> bool:
        found = box.status()
        vllm = next((b for b in found["backends"] if b["name"] == "vllm"), None)
        return bool(
            vllm and vllm["accepting"] and found["mode"] == "B" and vllm["pids"] != before["vllm"]
        )

    wait_until(moved, 40, "vLLM to move")
    box.kept({"ollama": before["ollama"]})


def test_a_dead_engine_is_cleaned_up_by_its_cgroup(box: Box, now: float) -> None:
    """SIGKILL of the API server: EngineCore goes too, its memory is back, it starts again."""
    box.start()
    before = box.pids()
    box.sh(f"kill -KILL {box.main_pid('vllm')}")
    exit_ = box.event("exit", now, backend="vllm")
    assert "signal 9" in exit_["MESSAGE"]
    wait_until(lambda: box.pids().get("vllm") not in ([], before["vllm"]), 30, "new processes")
    box.wait_ready()
    for pid in before["vllm"]:
        assert not box.alive(pid)
    box.kept({"ollama": before["ollama"]})
    story = box.sh(f"journalctl -x -t gpu-arbiter --since @{now:.6f} ARBITER_BACKEND=vllm")
    assert "Subject: A backend has ended" in story
    assert "Subject: A failed backend is cleaned up" in story
    assert "Subject: A backend is stopped" not in story
    assert "Subject: A backend is killed" not in story
    assert (
        box.event("recovered", now, backend="vllm")["ARBITER_INCIDENT"] == exit_["ARBITER_INCIDENT"]
    )


def test_exit_zero_unasked_is_read_and_named(box: Box, now: float) -> None:
    """EngineCore dies, the server ends with 0: the unit keeps the status, the reason is found."""
    box.start()
    core = box.sh(
        "for one in /proc/[0-9]*; do grep -qa 'vllm[_]core' $one/cmdline && basename $one; done; true"
    )
    box.sh(f"kill -KILL {core.split()[0]}")
    exit_ = box.event("exit", now, backend="vllm")
    assert "exit code 0" in exit_["MESSAGE"]
    box.event("ready", now, backend="vllm")
    box.wait_ready()


def test_stop_of_a_dead_daemon_stops_the_engines(box: Box) -> None:
    """ExecStopPost asks for the job: `stop` means the slice."""
    box.start()
    before = box.pids()
    pid = box.show("gpu-arbiter", "MainPID")
    box.sh(f"systemctl stop --no-block gpu-arbiter; kill -KILL {pid} || true")
    wait_until(lambda: box.show("gpu-arbiter", "ActiveState") in ("inactive", "failed"), 60)

    def gone() -> bool:
        return all(not box.alive(one) for pids in before.values() for one in pids)

    wait_until(gone, 60, "the engines to be stopped")


def test_a_unit_stopped_by_hand_stays_stopped(box: Box, now: float) -> None:
    """systemctl stop of a backend is a person's will; resume brings it back."""
    box.start()
    box.sh("systemctl stop gpu-arbiter-backend-ollama")
    box.event("stopped_by_operator", now, backend="ollama")
    assert box.backends()["ollama"]["phase"] in ("stopped", "stopping")
    box.sh("/opt/gpu-arbiter/bin/arbiterctl resume ollama")
    box.wait_ready()


def test_a_missing_program_is_a_sentence(box: Box, now: float) -> None:
    """Not a loop of 203/EXEC."""
    good = box.config()
    box.config(
        good.replace('"serve", "Qwen', '"serve", "Qwen', 1).replace(
            'command = ["/opt/gpu-arbiter/current/venv/bin/python", "-m", "arbiterd.sim.engines.ollama", "serve"]',
            'command = ["/opt/nowhere/ollama", "serve"]',
        )
    )
    box.sh("systemctl start gpu-arbiter")
    wait_until(lambda: box.backends().get("vllm", {}).get("accepting"), 40, "vLLM to be ready")
    found = box.backends()["ollama"]
    assert found["phase"] == "waiting"
    assert "/opt/nowhere/ollama is not there" in found["reason"]


def test_the_admin_socket_is_for_root_and_the_group(box: Box) -> None:
    """Others may not open it; reading over TCP they may."""
    box.start()
    other = box.run(
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "/opt/gpu-arbiter/bin/arbiterctl",
        "drain",
        "vllm",
    )
    assert other.returncode == 69
    assert "group gpu-arbiter" in other.stderr
    ask = (
        "import sys, urllib.request as r, urllib.error as e\n"
        "try: print(r.urlopen(r.Request(sys.argv[2], method=sys.argv[1])).status)\n"
        "except e.HTTPError as error: print(error.code)\n"
    )

    def status(method: str, path: str) -> str:
        return box.run(PYTHON, "-c", ask, method, f"http://127.0.0.1:9480{path}").stdout.strip()

    assert status("GET", "/v1/status") == "200"
    assert status("POST", "/v1/admin/stop-all") == "404"


def test_the_unit_files_are_what_systemd_wants(box: Box) -> None:
    """verify prints nothing; the sandbox is tight by systemd's own measure."""
    done = box.run("systemd-analyze", "verify", "gpu-arbiter.service")
    assert done.stderr.strip() == ""
    text = box.sh("systemd-analyze security --no-pager gpu-arbiter.service | tail -1")
    level = float(text.split("for gpu-arbiter.service:")[1].split()[0])
    assert level < 5.0, text
