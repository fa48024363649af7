"""What breaks, and what the daemon does about it: the guilty one is restarted, the others go on."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from functools import partial

import requests

from arbiterd.linux import procfs
from tests.support import PATIENCE_S, wait_until
from tests.support.host import MODEL, Host, settle

VLLM_ONLY = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\n'


def _core_of(host: Host) -> int:
    """Pid of vLLM's EngineCore."""
    return _pid_of(host, "vllm_core")


def _main_of(host: Host) -> int:
    """Pid of vLLM's API server."""
    return _pid_of(host, "vllm serve")


def _pid_of(host: Host, part: str) -> int:
    pids: list[int] = host.backend("vllm")["pids"]
    return next(pid for pid in pids if part in procfs.command(pid))


def test_a_killed_api_server_leaves_no_orphan(up: Host) -> None:
    """EngineCore outlives it with all its memory (vllm #55510): it is found, killed, awaited."""
    innocent, restarts = up.backend("ollama")["pids"], up.backend("vllm")["restarts"]
    core = _core_of(up)
    os.kill(_main_of(up), signal.SIGKILL)
    up.wait_event("exit", "vllm")
    wait_until(lambda: procfs.ref(core) is None, 10, "the orphan to be gone")
    up.wait(lambda: len(up.events("ready", "vllm")) == 1, "vllm to be back")
    assert up.backend("vllm")["restarts"] == restarts + 1
    assert set(innocent) <= set(up.backend("ollama")["pids"])
    incident = up.incidents("vllm")[0]
    assert incident["closed_at"]
    assert incident["actions"]
    row = next(r for r in up.gpu_row()["ledger"] if r["holder"] == "vllm")
    assert row["used"] <= row["cap"]


def test_exit_zero_unasked_is_a_failure(up: Host) -> None:
    """EngineCore dies, the server ends with exit code 0 (vllm #48966): it comes back."""
    os.kill(_core_of(up), signal.SIGKILL)
    event = up.wait_event("exit", "vllm")
    assert "exit code 0" in event["MESSAGE"]
    up.wait(lambda: len(up.events("ready", "vllm")) == 1, "vllm to be back")
    assert "engine core died" in up.incidents("vllm")[0]["summary"] or up.events("restart", "vllm")


def test_a_hung_engine_stops_accepting_and_is_restarted(up: Host) -> None:
    """/health says 200 all the while; the canary does not come back."""
    up.fault("vllm", hang=True)
    with requests.Session() as session:
        session.trust_env = False
        url = f"http://127.0.0.1:{up.ports['vllm']}/health"
        assert session.get(url, timeout=PATIENCE_S).status_code == 200
    up.wait_event("stuck", "vllm")
    assert not up.backend("vllm")["accepting"]
    assert up.incidents("vllm")[0]["event"] == "stuck"
    up.wait_event("restart", "vllm")
    up.fault("vllm")
    up.wait(lambda: len(up.events("ready", "vllm")) == 1, "vllm to be back")
    assert up.incidents("vllm")[0]["closed_at"]


def test_requests_that_stand_still_are_noticed_by_the_counters(up: Host) -> None:
    """Under load no canary is sent; running requests whose counters do not move are the sign."""
    up.fault("vllm", hang=True)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 4}

    def ask() -> None:
        with requests.Session() as session:
            session.trust_env = False
            try:
                url = f"http://127.0.0.1:{up.ports['vllm']}/v1/completions"
                session.post(url, json=body, timeout=PATIENCE_S)
            except requests.RequestException:
                return

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    up.wait(lambda: not up.backend("vllm")["accepting"], "to stop accepting", 20)
    assert "no counter moved" in up.incidents("vllm")[0]["summary"]
    up.fault("vllm")
    for thread in threads:
        thread.join(35)


def test_a_crash_loop_opens_the_breaker_and_resume_closes_it(up: Host) -> None:
    """Killed, and no start comes to anything. Five failures: failed, one critical event; the operator's resume starts it afresh."""
    up.fault("vllm", exit_on_start=3, last_words="boom")
    os.kill(_main_of(up), signal.SIGKILL)
    up.wait_phase("vllm", "failed", timeout_s=60)
    assert len(up.events("crash_loop", "vllm")) == 1
    assert up.backend("ollama")["accepting"]
    assert "exit code 3" in str(up.events("exit", "vllm")[-1]["MESSAGE"])
    up.fault("vllm")
    assert up.ctl("resume", "vllm").returncode == 0
    up.wait_ready("vllm")


def test_a_bad_flag_is_not_tried_again(host: Host) -> None:
    """The last words say it: unrecognized arguments. No loop, one critical event with the flag."""
    command = '"--no-such-flag"'
    host.write(VLLM_ONLY, only=("vllm",))
    text = host.config.read_text().replace(f'"serve", "{MODEL}"', f'"serve", "{MODEL}", {command}')
    host.config.write_text(text)
    host.start()
    host.wait_phase("vllm", "failed")
    assert "--no-such-flag" in host.backend("vllm")["reason"]
    assert len(host.events("start", "vllm")) == 1


def test_an_oom_at_start_is_classified(host: Host) -> None:
    """The model does not fit its cap: vLLM's own words are understood, the sentence names them."""
    host.fault("vllm", weights_bytes=20 << 30)
    host.write(VLLM_ONLY, only=("vllm",), keys={"vllm": 'restart_delay = "5s"'})
    text = host.config.read_text().replace('restart_delay = "200ms"\n', "", 1)
    host.config.write_text(text)
    host.start()
    event = host.wait_event("oom", "vllm")
    assert "budget_too_small" in event["MESSAGE"] or "oom_start" in event["MESSAGE"]
    assert host.wait_event("exit", "vllm")


def test_a_lost_gpu_stops_starts_and_is_told(pair: Host) -> None:
    """gpu_lost as an incident; the backend on the other card goes on; restored, it is over."""
    pair.write(
        '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\nollama = { gpu = 1, memory = "20%" }\n',
        only=("vllm", "ollama"),
    )
    pair.start()
    pair.wait_ready()
    pids = pair.backend("ollama")["pids"]
    pair.gpu.lose(0)
    pair.wait(lambda: pair.gpu_row(0)["state"] == "lost", "gpu 0 to be lost", 10)
    assert pair.wait_event("gpu_lost")["PRIORITY"] == "2"
    assert pair.gpu_row(1)["state"] == "ok"
    assert pair.status()["loop"]["blind"] is True
    pair.gpu.restore(0)
    pair.wait(lambda: pair.gpu_row(0)["state"] == "ok", "gpu 0 to be back", 25)
    pair.wait_event("driver_back")
    assert pair.backend("ollama")["pids"] == pids


def test_a_hung_driver_makes_it_blind_not_dead(up: Host) -> None:
    """NVML hangs: the API answers, engines serve, nothing is restarted; then it sees again."""
    pids = up.backend("vllm")["pids"]
    up.gpu.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000)
    up.wait(lambda: up.status()["loop"]["blind"], "blindness", 15)
    began = up.status()["loop"]["tick"]
    up.wait_event("driver_hung")
    assert up.get("/livez").status_code == 200
    assert up.backend("vllm")["accepting"]
    assert up.gpu_row()["memory"]["used"] is None
    up.wait(lambda: up.status()["loop"]["tick"] > began + 10, "ticks to go on", 10)
    up.gpu.clear_faults()
    up.wait(lambda: not up.status()["loop"]["blind"], "sight", 30)
    assert up.backend("vllm")["pids"] == pids


def test_without_nvml_cpu_backends_run_and_others_wait(host: Host) -> None:
    """NVML missing is no config error: the daemon starts, says so, serves what needs no GPU."""
    host.write(
        '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\nollama = { gpu = "cpu" }\n',
        only=("vllm", "ollama"),
    )
    host.start(LD_LIBRARY_PATH="/nonexistent")
    host.wait_ready("ollama")
    assert host.backend("vllm")["phase"] == "waiting"
    assert "Library Not Found" in host.backend("vllm")["reason"]
    event = host.wait_event("driver_hung")
    assert "GPU backends wait" in event["MESSAGE"]


def test_slow_release_is_waited_for(up: Host) -> None:
    """Memory comes back 1.5 s after the process: the next start waits for it."""
    up.gpu.set_release_lag(1500)
    assert up.ctl("restart", "vllm").returncode == 0
    up.wait(lambda: len(up.events("ready", "vllm")) == 1, "vllm to be back")
    gone = next(e for e in up.events("released", "vllm") if "came back" in e["MESSAGE"])
    assert int(gone["ARBITER_TOOK_MS"]) >= 1400
    assert int(gone["ARBITER_BYTES_FREED"]) > 10 << 30
    assert not up.events("oom", "vllm")


def _serve_of(host: Host) -> int:
    """Pid of `ollama serve`, 0 until the tags have been scanned."""
    pids: list[int] = host.backend("ollama")["pids"]
    return next((pid for pid in pids if "ollama serve" in procfs.command(pid)), 0)


def test_an_engine_that_ends_is_noticed_at_once(up: Host) -> None:
    """From SIGKILL to the journal's exit event: well under a second on a busy test machine (the
    benchmark measures it properly).
    """
    took = []
    for number in range(1, 4):
        pid = wait_until(partial(_serve_of, up), 5, "its pid")
        began = time.time()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda n=number: len(up.events("exit", "ollama")) >= n, 5, "exit")  # type: ignore[misc]
        took.append(time.time() - began)
        up.wait(lambda n=number: len(up.events("ready", "ollama")) >= n, "back")  # type: ignore[misc]
        up.wait_ready("ollama")
    assert statistics.median(took) < 2.0


def test_an_unasked_sigstop_is_noticed(up: Host) -> None:
    """SIGSTOP of EngineCore: health says 200, the canary does not come back."""
    core = _core_of(up)
    os.kill(core, signal.SIGSTOP)
    up.wait(lambda: not up.backend("vllm")["accepting"], "to stop accepting", 40)
    up.wait(lambda: len(up.events("ready", "vllm")) == 1, "vllm to be back", 40)
    assert procfs.ref(core) is None


def test_drain_lets_nothing_in_and_touches_nothing(up: Host) -> None:
    """Phase draining, not accepting, same processes; resume takes it back."""
    pids = up.backend("vllm")["pids"]
    assert up.ctl("drain", "vllm").returncode == 0
    up.wait_phase("vllm", "draining")
    assert settle(lambda: up.backend("vllm")["pids"] == pids, 1.0)
    assert not up.backend("vllm")["accepting"]
    assert up.ctl("resume", "vllm").returncode == 0
    up.wait_ready("vllm")


def test_stop_all_stops_and_resume_brings_back(up: Host) -> None:
    """stop-all: everything stopped and staying so; resume of one starts that one."""
    done = up.ctl("stop-all", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["stopped"]
    up.wait_phase("vllm", "stopped")
    up.wait_phase("ollama", "stopped")
    assert settle(lambda: up.backend("vllm")["phase"] == "stopped", 1.0)
    assert up.ctl("resume", "ollama").returncode == 0
    up.wait_ready("ollama")
    assert up.backend("vllm")["phase"] == "stopped"


def test_all_engines_of_a_shared_card_down_is_one_incident(up: Host) -> None:
    """all_unavailable is raised once and closed when the first is back."""
    for name in ("tensorflow", "vllm", "ollama"):
        up.fault(name, start_delay_s=600)
    for name in ("tensorflow", "vllm", "ollama"):
        assert up.ctl("restart", name).returncode == 0
    up.wait_event("all_unavailable")
    assert up.get("/readyz").status_code == 503
    for name in ("tensorflow", "vllm", "ollama"):
        up.fault(name)
    up.wait_ready()
    told = [one["ARBITER_INCIDENT"] for one in up.events("all_unavailable")]
    assert [bool(i["closed_at"]) for i in up.incidents() if i["id"] in told] == [True]
