"""Start, reload, switch, restart and adoption of the daemon itself."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

from arbiterd.linux import procfs
from tests.support import free_port, wait_until
from tests.support.host import Host, settle

TWO = """\
[modes.A]
vllm = { gpu = 0, memory = "55%" }
ollama = { gpu = 0, memory = "20%" }

[modes.B]
vllm = { gpu = 1, memory = "75%" }
ollama = { gpu = 0, memory = "20%" }
"""


def _pids(host: Host) -> dict[str, list[int]]:
    """Engines' processes by backend, once the runner of the warm model is counted too (the tags are
    scanned once a second).
    """

    def found() -> dict[str, list[int]]:
        return {b["name"]: b["pids"] for b in host.status()["backends"]}

    wait_until(
        lambda: all(len(pids) > 1 for name, pids in found().items() if name != "tensorflow"), 5
    )
    return found()


def test_kill_9_of_the_daemon_changes_no_engine(up: Host) -> None:
    """SIGKILL, start again: same pids, adopted, nothing restarted, incidents of before still told."""
    before = _pids(up)
    up.kill()
    assert all(procfs.ref(pid) for pids in before.values() for pid in pids)
    up.start()
    up.wait_ready()
    assert _pids(up) == before
    assert {e["ARBITER_BACKEND"] for e in up.events("adopted")} == set(before)
    assert not up.events("start")


def test_an_engine_that_died_while_nobody_watched_is_started_anew(up: Host) -> None:
    """Its orphan is cleaned up first."""
    pids = up.backend("vllm")["pids"]
    up.kill()
    main = next(p for p in pids if "vllm serve" in procfs.command(p))
    os.kill(main, signal.SIGKILL)
    up.start()
    up.wait_ready()
    assert not set(pids) & set(up.backend("vllm")["pids"])
    assert not any(procfs.ref(pid) for pid in pids)


def test_a_reload_switches_modes_and_keeps_what_is_equal(pair: Host) -> None:
    """One line edited: vLLM moves to the other card, Ollama is not touched."""
    pair.write(TWO, only=("vllm", "ollama"))
    pair.start()
    pair.wait_ready()
    kept = _pids(pair)["ollama"]
    text = pair.config.read_text()
    pair.config.write_text(text.replace('mode = "A"', 'mode = "B"', 1))
    pair.wait(lambda: pair.status()["config_pending"], "the edit to be noticed", 10)
    pair.wait_event("config_pending")
    done = pair.ctl("reload", "--wait=done")
    assert done.returncode == 0, done.stderr
    status = pair.status()
    assert status["mode"] == "B"
    assert not status["config_pending"]
    gpu1 = next(g["uuid"] for g in status["gpus"] if g["index"] == 1)
    assert pair.backend("vllm")["gpu"] == [gpu1]
    pair.wait_ready()
    assert pair.backend("ollama")["pids"] == kept
    held = next(r for r in pair.gpu_row(1)["ledger"] if r["holder"] == "vllm")
    assert held["used"] > 10 << 30
    pair.wait_event("mode_switch")


def test_sighup_reloads(up: Host) -> None:
    """As ExecReload= of old would do it."""
    pids = _pids(up)["ollama"]
    good = up.config.read_text()
    up.config.write_text(good.replace('drain_timeout = "2s"', 'drain_timeout = "3s"'))
    up.signal(signal.SIGHUP)
    up.wait_event("reload")
    assert settle(lambda: _pids(up)["ollama"] == pids, 1.0), "only the arbiter acts on that key"
    up.config.write_text(good.replace("models = [", "context_length = 4096\nmodels = ["))
    up.signal(signal.SIGHUP)
    up.wait(lambda: len(up.events("ready", "ollama")) == 1, "the changed one to restart")


def test_a_bad_reload_changes_nothing_and_says_everything(up: Host) -> None:
    """The old file stays in force; ctl prints every problem; the page knows."""
    pids = _pids(up)["ollama"]
    good = up.config.read_text()
    up.config.write_text(
        good.replace(
            'ollama = { gpu = 0, memory = "20%"', "ollama = { gpu = 0, memory = 20"
        ).replace('mode = "A"', 'mode = "Z"', 1)
    )
    done = up.ctl("reload")
    assert done.returncode == 1
    assert "modes.A.ollama.memory: 20 has no unit" in done.stderr
    assert "unknown mode 'Z'" in done.stderr
    up.wait_event("reload_refused")
    assert len(up.events("config_refused")) == 2
    up.wait(lambda: len(up.status()["config_refused"]) == 2, "the problems in the status", 5)
    assert up.backend("ollama")["pids"] == pids
    up.config.write_text(good)
    assert up.ctl("reload").returncode == 0
    up.wait(lambda: not up.status()["config_refused"], "to be forgotten", 5)
    assert up.backend("ollama")["pids"] == pids


def test_what_cannot_change_while_running_is_refused(up: Host) -> None:
    """A new listen address needs a restart, which keeps the engines."""
    text = up.config.read_text().replace(f":{up.listen}", f":{free_port()}")
    up.config.write_text(text)
    done = up.ctl("reload")
    assert done.returncode == 1
    assert "arbiter.listen" in done.stderr
    assert "restart" in done.stderr


def test_a_bad_file_at_start_is_exit_78_and_starts_nothing(host: Host) -> None:
    """Every problem on stderr, one a line."""
    host.write("[modes.A]\nollama = { gpu = 0, memory = 20 }", only=("ollama",))
    code, said = host.run_to_end()
    assert code == 78
    assert f"{host.config}:" in said
    assert "modes.A.ollama.memory" in said
    assert "Traceback" not in said
    assert host.tagged() == []


def test_a_gpu_that_was_never_there_is_exit_78(host: Host) -> None:
    """NVML answers and lists no GPU 7; state_dir has never seen one."""
    host.write('[modes.A]\nollama = { gpu = 7, memory = "20%" }', only=("ollama",))
    code, said = host.run_to_end()
    assert code == 78
    assert "there is no GPU 7 on this host; there is 0 (NVIDIA GeForce RTX 4090)" in said


def test_a_gpu_seen_before_is_lost_not_mistyped(pair: Host) -> None:
    """The second card is gone at the next start: the daemon starts, that backend waits."""
    pair.write(TWO, only=("vllm", "ollama"), mode="B")
    pair.start()
    pair.wait_ready()
    uuid = pair.backend("vllm")["gpu"]
    assert uuid
    assert pair.stop() == 0
    pair.gpu.lose(1)
    pair.start()
    pair.wait_ready("ollama")
    assert pair.backend("vllm")["phase"] == "waiting"
    assert settle(lambda: pair.backend("vllm")["phase"] == "waiting", 1.0)


def test_a_bad_file_while_engines_live_guards_them_on_the_last_good_one(up: Host) -> None:
    """Exit would leave them unguarded: config_refused is raised, the engines keep their pids."""
    pids = _pids(up)["ollama"]
    up.kill()
    up.config.write_text("mode = \n" + up.config.read_text())
    up.start()
    up.wait_ready()
    assert up.backend("ollama")["pids"] == pids
    assert up.status()["config_refused"]
    up.wait_event("config_refused")


def test_unreadable_state_is_kept_aside_and_said(host: Host) -> None:
    """Broken incidents, inventory and record: the daemon starts and names the files."""
    host.write('[modes.A]\nollama = { gpu = 0, memory = "20%" }', only=("ollama",))
    (host.home / "state" / "incidents.json").write_text("{not json")
    (host.home / "state" / "gpus.json").write_text("[1, 2]")
    (host.home / "run" / "backends").mkdir()
    (host.home / "run" / "backends" / "ollama.json").write_text("[]")
    host.start()
    host.wait_ready()
    said = " ".join(e["MESSAGE"] for e in host.events("state_unreadable"))
    assert "incidents.json" in said
    assert "gpus.json" in said
    assert "ollama.json" in said
    assert (host.home / "state" / "incidents.broken").read_text() == "{not json"


def test_a_second_arbiter_is_refused_with_the_first_ones_pid(up: Host) -> None:
    """One lock per runtime_dir."""
    assert up.process is not None
    code, said = up.run_to_end()
    assert code == 1
    assert f"pid {up.process.pid}" in said


def test_a_taken_listen_address_does_not_leave_engines_unguarded(host: Host) -> None:
    """The API is retried; the admin socket works meanwhile."""
    import socket

    host.write('[modes.A]\nollama = { gpu = 0, memory = "20%" }', only=("ollama",))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", host.listen))
        taken.listen()
        import subprocess
        import sys

        log = host.log.open("ab")
        host.process = subprocess.Popen(
            [sys.executable, "-m", "arbiterd", "--config", str(host.config)],
            env=host.environ(),
            stderr=log,
            stdout=log,
        )
        log.close()
        wait_until((host.home / "run" / "admin.sock").exists, 10, "the socket")
        host.wait_event("port_taken")
        found = json.loads(host.ctl("status", "--json").stdout)
        assert found["notes"]
    wait_until(partial(_answers, host), 15, "the API")


def _answers(host: Host) -> bool:
    import requests

    try:
        return host.get("/livez").status_code == 200
    except requests.ConnectionError:
        return False


def test_incidents_outlive_the_daemon(up: Host) -> None:
    """Told again after a restart, from state_dir."""
    pid = next(p for p in up.backend("ollama")["pids"] if "ollama serve" in procfs.command(p))
    os.kill(pid, signal.SIGKILL)
    up.wait_event("recovered", "ollama")
    told = [i["id"] for i in up.incidents("ollama")]
    assert told
    wait_until(
        lambda: told[0] in Path(up.home / "state" / "incidents.json").read_text(), 5, "the file"
    )
    up.kill()
    up.start()
    assert set(told) <= {i["id"] for i in up.incidents("ollama")}


def test_a_dry_run_decides_and_touches_nothing(host: Host) -> None:
    """The start is logged, no process is there."""
    host.write('[modes.A]\nollama = { gpu = 0, memory = "20%" }', only=("ollama",))
    host.start(GPU_ARBITER_ARBITER__DRY_RUN="true")
    host.wait_event("start", "ollama")
    assert host.status()["dry_run"] is True
    assert settle(lambda: not host.tagged(), 1.0)


def test_mig_slices_are_devices_of_their_own(tmp_path: Path, sim_lib: Path) -> None:
    """Mode B on an A100: two slices, a backend each, attribution per slice; the parent takes none."""
    host = Host(tmp_path, sim_lib, ("a100-40g",))
    try:
        host.gpu.set_mig(0, ["3g.20gb", "3g.20gb"])
        first, second = host.gpu.mig_uuids(0)
        host.write(
            f'[modes.B]\nvllm = {{ gpu = "{first}" }}\nollama = {{ gpu = "{second}", memory = "30%" }}\n',
            only=("vllm", "ollama"),
            mode="B",
        )
        host.start()
        host.wait_ready()

        def held() -> int:
            rows = {g["uuid"]: g for g in host.status()["gpus"]}
            mine = next(r for r in rows[first]["ledger"] if r["holder"] == "vllm")
            assert mine["used"] is None or mine["used"] <= mine["cap"]
            return mine["used"] or 0

        # process lists are read every two seconds when all is quiet
        host.wait(lambda: held() > 10 << 30, "its memory on its slice", 10)
        rows = {g["uuid"]: g for g in host.status()["gpus"]}
        assert all(r["holder"] != "vllm" for r in rows[second]["ledger"])
        assert host.status()["sharing"] == "partitioned"
    finally:
        host.close()
