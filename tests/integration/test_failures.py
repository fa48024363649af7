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

from arbiterd import procfs
from tests.support import wait_until
from tests.support.host import MODEL, SHARED, Host, settle

VLLM_ONLY = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\n'
PAIR = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\nollama = { gpu = 0, memory = "20%" }\n'


def _core_of(host: Host) -> int:
    """Pid of vLLM's EngineCore."""
    return _pid_of(host, "vllm_core")


def _main_of(host: Host) -> int:
    """Pid of vLLM's API server."""
    return _pid_of(host, "vllm serve")


def _pid_of(host: Host, part: str) -> int:
    pids: list[int] = host.backend("vllm")["pids"]
    return next(pid for pid in pids if part in procfs.command(pid))


def test_a_killed_api_server_leaves_no_orphan(host: Host) -> None:
    """EngineCore outlives it with all its memory (vllm #55510): it is found, killed, awaited."""
    host.write(PAIR, only=("vllm", "ollama"))
    host.start()
    host.wait_ready()
    innocent = host.backend("ollama")["pids"]
    core = _core_of(host)
    os.kill(_main_of(host), signal.SIGKILL)
    host.wait_event("exit", "vllm")
    wait_until(lambda: procfs.ref(core) is None, 10, "the orphan to be gone")
    host.wait(lambda: len(host.events("ready", "vllm")) == 2, "vllm to be back")
    assert host.backend("vllm")["restarts"] == 1
    assert set(innocent) <= set(host.backend("ollama")["pids"])
    incident = host.incidents("vllm")[0]
    assert incident["closed_at"]
    assert incident["actions"]
    row = next(r for r in host.gpu_row()["ledger"] if r["holder"] == "vllm")
    assert row["used"] <= row["cap"]


def test_exit_zero_unasked_is_a_failure(host: Host) -> None:
    """EngineCore dies, the server ends with exit code 0 (vllm #48966): it comes back."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    os.kill(_core_of(host), signal.SIGKILL)
    event = host.wait_event("exit", "vllm")
    assert "exit code 0" in event["MESSAGE"]
    host.wait(lambda: len(host.events("ready", "vllm")) == 2, "vllm to be back")
    assert "engine core died" in host.incidents("vllm")[0]["summary"] or host.events(
        "restart", "vllm"
    )


def test_a_hung_engine_stops_accepting_and_is_restarted(host: Host) -> None:
    """/health says 200 all the while; the canary does not come back."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    host.fault("vllm", hang=True)
    host.wait(lambda: not host.backend("vllm")["accepting"], "to stop accepting", 40)
    with requests.Session() as session:
        session.trust_env = False
        url = f"http://127.0.0.1:{host.ports['vllm']}/health"
        assert session.get(url, timeout=3).status_code == 200
    assert host.incidents("vllm")[0]["event"] == "stuck"
    host.wait(lambda: host.backend("vllm")["phase"] == "stopping", "the restart", 20)
    host.fault("vllm")
    host.wait(lambda: len(host.events("ready", "vllm")) == 2, "vllm to be back")
    assert host.incidents("vllm")[0]["closed_at"]


def test_requests_that_stand_still_are_noticed_by_the_counters(host: Host) -> None:
    """Under load no canary is sent; running requests whose counters do not move are the sign."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    host.fault("vllm", hang=True)
    body = {"model": MODEL, "prompt": "x", "max_tokens": 4}

    def ask() -> None:
        with requests.Session() as session:
            session.trust_env = False
            try:
                url = f"http://127.0.0.1:{host.ports['vllm']}/v1/completions"
                session.post(url, json=body, timeout=30)
            except requests.RequestException:
                return

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    host.wait(lambda: not host.backend("vllm")["accepting"], "to stop accepting", 20)
    assert "no counter moved" in host.incidents("vllm")[0]["summary"]
    host.fault("vllm")
    for thread in threads:
        thread.join(35)


def test_a_crash_loop_opens_the_breaker_and_resume_closes_it(host: Host) -> None:
    """Five failures: failed, one critical event; the operator's resume starts it afresh."""
    host.fault("vllm", exit_on_start=3, last_words="boom")
    host.write(PAIR, only=("vllm", "ollama"), keys={"vllm": 'restart_delay_max = "300ms"'})
    host.start()
    host.wait_phase("vllm", "failed", timeout_s=60)
    assert len(host.events("crash_loop", "vllm")) == 1
    assert host.backend("ollama")["accepting"]
    assert "exit code 3" in str(host.events("exit", "vllm")[0]["MESSAGE"])
    host.fault("vllm")
    assert host.ctl("resume", "vllm").returncode == 0
    host.wait_ready("vllm")


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


def test_a_hung_driver_makes_it_blind_not_dead(host: Host) -> None:
    """NVML hangs: the API answers, engines serve, nothing is restarted; then it sees again."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    pids = host.backend("vllm")["pids"]
    host.gpu.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000)
    host.wait(lambda: host.status()["loop"]["blind"], "blindness", 15)
    began = host.status()["loop"]["tick"]
    host.wait_event("driver_hung")
    assert host.get("/livez").status_code == 200
    assert host.backend("vllm")["accepting"]
    assert host.gpu_row()["memory"]["used"] is None
    host.wait(lambda: host.status()["loop"]["tick"] > began + 10, "ticks to go on", 10)
    host.gpu.clear_faults()
    host.wait(lambda: not host.status()["loop"]["blind"], "sight", 30)
    assert host.backend("vllm")["pids"] == pids


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


def test_slow_release_is_waited_for(host: Host) -> None:
    """Memory comes back 1.5 s after the process: the next start waits for it."""
    host.gpu.set_release_lag(1500)
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    assert host.ctl("restart", "vllm").returncode == 0
    host.wait(lambda: len(host.events("ready", "vllm")) == 2, "vllm to be back")
    gone = next(e for e in host.events("released", "vllm") if "came back" in e["MESSAGE"])
    assert int(gone["ARBITER_TOOK_MS"]) >= 1400
    assert int(gone["ARBITER_BYTES_FREED"]) > 10 << 30
    assert not host.events("oom", "vllm")


def _serve_of(host: Host) -> int:
    """Pid of `ollama serve`, 0 until the tags have been scanned."""
    pids: list[int] = host.backend("ollama")["pids"]
    return next((pid for pid in pids if "ollama serve" in procfs.command(pid)), 0)


def test_an_engine_that_ends_is_noticed_at_once(host: Host) -> None:
    """From SIGKILL to the journal's exit event: well under a second on a busy test machine (the
    benchmark measures it properly).
    """
    host.write('[modes.A]\nollama = { gpu = 0, memory = "20%" }', only=("ollama",))
    host.start()
    host.wait_ready()
    took = []
    for number in range(1, 4):
        pid = wait_until(partial(_serve_of, host), 5, "its pid")
        began = time.time()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda n=number: len(host.events("exit", "ollama")) >= n, 5, "exit")  # type: ignore[misc]
        took.append(time.time() - began)
        host.wait(lambda n=number: len(host.events("ready", "ollama")) > n, "back")  # type: ignore[misc]
        host.wait_ready("ollama")
    assert statistics.median(took) < 2.0


def test_an_unasked_sigstop_is_noticed(host: Host) -> None:
    """SIGSTOP of EngineCore: health says 200, the canary does not come back."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    core = _core_of(host)
    os.kill(core, signal.SIGSTOP)
    host.wait(lambda: not host.backend("vllm")["accepting"], "to stop accepting", 40)
    host.wait(lambda: len(host.events("ready", "vllm")) == 2, "vllm to be back", 40)
    assert procfs.ref(core) is None


def test_drain_lets_nothing_in_and_touches_nothing(host: Host) -> None:
    """Phase draining, not accepting, same processes; resume takes it back."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    pids = host.backend("vllm")["pids"]
    assert host.ctl("drain", "vllm").returncode == 0
    host.wait_phase("vllm", "draining")
    assert settle(lambda: host.backend("vllm")["pids"] == pids, 1.0)
    assert not host.backend("vllm")["accepting"]
    assert host.ctl("resume", "vllm").returncode == 0
    host.wait_ready("vllm")


def test_stop_all_stops_and_resume_brings_back(host: Host) -> None:
    """stop-all: everything stopped and staying so; resume of one starts that one."""
    host.write(PAIR, only=("vllm", "ollama"))
    host.start()
    host.wait_ready()
    done = host.ctl("stop-all", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["stopped"]
    host.wait_phase("vllm", "stopped")
    host.wait_phase("ollama", "stopped")
    assert settle(lambda: host.backend("vllm")["phase"] == "stopped", 1.0)
    assert host.ctl("resume", "ollama").returncode == 0
    host.wait_ready("ollama")
    assert host.backend("vllm")["phase"] == "stopped"


def test_all_engines_of_a_shared_card_down_is_one_incident(host: Host) -> None:
    """all_unavailable is raised once and closed when the first is back."""
    host.write(SHARED)
    host.start()
    host.wait_ready()
    for name in ("tensorflow", "vllm", "ollama"):
        host.fault(name, start_delay_s=600)
    for name in ("tensorflow", "vllm", "ollama"):
        assert host.ctl("restart", name).returncode == 0
    host.wait_event("all_unavailable")
    assert host.get("/readyz").status_code == 503
    for name in ("tensorflow", "vllm", "ollama"):
        host.fault(name)
    host.wait_ready()
    mine = [i for i in host.incidents() if i["event"] == "all_unavailable"]
    assert [bool(i["closed_at"]) for i in mine] == [True]
