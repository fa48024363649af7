"""Faults of engines: they die, hang, lie, flood, multiply and will not go."""

from __future__ import annotations

import signal
import socket
from typing import Any

from arbiterd.linux import procfs
from tests.faults.by_hand import (
    CONT,
    STOP,
    both,
    gone,
    hit,
    main_of,
    off,
    part_of,
    phase,
    serves,
    shut,
    switch,
    ticks_go_on,
    told,
)
from tests.faults.direct import NAMES, SECRET
from tests.faults.row import Fault
from tests.faults.stage import Stage, dead, stays, until, with_words

KIND = "engine"
_BACK = "the engine is started again, its memory is released, neighbours are not touched"
_DIES = "exit"


def _row(name: str, backend: str, inject: Any, promise: str = _BACK, **more: Any) -> Fault:
    more.setdefault("moves", (backend,))
    more.setdefault("tells", (_DIES,))
    return Fault(f"engine-{name}", KIND, "direct", inject, promise, **more)


def _resumed(name: str) -> Any:
    """The switch off, and the operator's resume after a crash loop."""

    def undo(stage: Stage, _: Any) -> None:
        stage.fault(name)
        if stage.backend(name)["phase"] == "failed":
            stage.order(name, "resume")

    return undo


def _all_at_once(*names: str) -> Any:
    def inject(stage: Stage) -> None:
        for pid in [stage.main_pid(name) for name in names]:
            stage.kill(pid)

    return inject


def _children_of_vllm(stage: Stage) -> int:
    """A bomb of 200, then its server dies."""
    main = stage.main_pid("vllm")
    stage.fault("vllm", fork_bomb=200)
    until(lambda: len(stage.tagged()) > 200, "200 children")
    stage.fault("vllm")
    return stage.kill(main)


def _stray(name: str, how: str) -> Any:
    def inject(stage: Stage) -> int:
        main = stage.main_pid(name)
        stage.fault(name, double_fork=how)
        pid = until(
            lambda: [p for p in stage.tagged() if "stray" in procfs.command(p)], "the stray"
        )
        stage.fault(name)
        stage.kill(main)
        return int(pid[0])

    return inject


def _port_stolen(name: str) -> Any:
    """Somebody listens on the engine's own port as soon as it is free."""

    def inject(stage: Stage) -> socket.socket:
        thief = socket.socket()
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stage.fault(name, start_delay_s=0)
        stage.kill(stage.main_pid(name))

        def bound() -> bool:
            thief.bind(("127.0.0.1", stage.ports[name] + 10000))
            return True

        until(bound, "the engine's port")
        thief.listen(8)
        return thief

    return inject


def _flood(stage: Stage, _: Any) -> None:
    """For 3 s; an output file stays bounded."""
    ticks_go_on(3.0)(stage, None)
    folder = stage.run / "logs"
    size = sum(one.stat().st_size for one in folder.glob("vllm.log*"))
    assert size < 200 << 20, f"the output of vllm takes {size >> 20} MiB"


def _while_starting(stage: Stage) -> int:
    stage.fault("vllm", load_s=20)
    stage.order("vllm", "restart")
    until(lambda: stage.backend("vllm")["phase"] == "starting", "a start")
    pid = stage.main_pid("vllm")
    return stage.kill(pid)


def _hung_start(stage: Stage) -> None:
    """vLLM loads for ever, and its neighbour crashes."""
    stage.fault("vllm", load_s=900)
    stage.order("vllm", "restart")
    until(lambda: stage.backend("vllm")["phase"] == "starting", "a start")
    stage.kill(stage.main_pid("tensorflow"))


def _neighbour_up(stage: Stage, _: Any) -> None:
    until(lambda: stage.backend("tensorflow")["accepting"], "the neighbour to serve", 110)


def _agree(name: str) -> Any:
    """Ready, route and door say the same within 3 s (a loaded machine: twice that)."""

    def look(stage: Stage, _: Any) -> None:
        def one_voice() -> bool:
            ready = stage.get(f"/v1/backends/{name}/ready").status_code
            route = stage.get(f"/v1/route?backend={name}").json().get("backend", "")
            door, by = stage.ask(name)
            ok = door == 200 and by == name
            return (ready == 200) == ok and (route == name) == ok

        until(lambda: stage.ask(name) != (200, name), f"the door of {name} to notice", 20)
        until(one_voice, "ready, route and door to agree", 6)

    return look


def _last_words(stage: Stage) -> None:
    words = f"error: engine started with --api-key {SECRET}; HF_TOKEN={SECRET}; {SECRET}"
    stage.fault("vllm", exit_on_start=3, last_words=words)
    stage.kill(stage.main_pid("vllm"))


METRICS = {
    "nan": "vllm:num_requests_running NaN\nvllm:generation_tokens_total NaN\nvllm:num_requests_waiting NaN\n",
    "inf": "vllm:num_requests_running +Inf\nvllm:generation_tokens_total -Inf\nvllm:num_requests_waiting 1e400\n",
    "words": "<html>not a metric at all</html>\n" * 50,
    "odd": 'vllm:num_requests_running{engine="0 1\nvllm:generation_tokens_total -5\nvllm:x{} \n{} 1\n',
    "huge": "vllm:generation_tokens_total 1\n" * 400_000,
}


def rows() -> list[Fault]:
    """The table."""
    return [
        *(_row(f"kill-{n}", n, hit(main_of(n)), seen=gone) for n in NAMES),
        *(_row(f"term-{n}", n, hit(main_of(n), signal.SIGTERM), seen=gone) for n in NAMES),
        _row("segv-vllm", "vllm", hit(main_of("vllm"), signal.SIGSEGV), seen=gone),
        _row("kill-core", "vllm", hit(part_of("vllm", "vllm_core")), seen=gone),
        _row("kill-runner", "ollama", hit(part_of("ollama", "llama_server")), tells=("runner_died",),
             promise="Ollama starts another runner; its death is told", moves=()),
        _row("kill-two", "vllm", _all_at_once("vllm", "tensorflow"), moves=("vllm", "tensorflow")),
        _row("kill-all", "vllm", _all_at_once(*NAMES), moves=NAMES),
        _row("kill-while-starting", "vllm", _while_starting, seen=gone, undo=off("vllm")),
        *(
            _row(f"stop-{n}", n, hit(main_of(n), STOP), seen=shut(n), tells=("unhealthy|stuck",),
                 promise="a hung engine is noticed, its door shut, the engine restarted")
            for n in NAMES
        ),
        _row("stop-core", "vllm", hit(part_of("vllm", "vllm_core"), STOP), seen=shut("vllm"),
             tells=("stuck",), promise="health says 200, the canary does not come back: restarted"),
        *(
            _row(f"crash-loop-{n}", n, switch(n, hit(main_of(n)), exit_on_start=3, last_words="boom"),
                 seen=phase(n, "failed"), undo=_resumed(n), tells=("exit", "crash_loop"),
                 promise="the breaker opens, one event, others serve; resume starts it afresh")
            for n in NAMES
        ),
        _row("exit-0-loop", "vllm", switch("vllm", hit(main_of("vllm")), exit_on_start=0),
             seen=phase("vllm", "failed", "backoff"), undo=_resumed("vllm"),
             promise="exit code 0 unasked is a failure like any other"),
        _row("dies-young", "vllm", switch("vllm", hit(main_of("vllm")), die_after_s=1.5, die_code=0),
             seen=told("exit", "vllm"), undo=_resumed("vllm"), promise="an engine that ends soon after its start is one that fails"),
        *(
            _row(f"ignores-term-{n}", n,
                 switch(n, hit(main_of(n)), ignore_sigterm=True),
                 seen=both(told("exit", n), phase(n, "ready"), lambda s, _, n=n: s.order(n, "restart"), told("stop|restart|kill", n)),
                 undo=off(n), promise="SIGKILL after the grace; the start waits for the memory")
            for n in NAMES
        ),
        _row("fork-bomb-200", "vllm", _children_of_vllm, seen=gone,
             promise="all 200 children end with their engine"),
        _row("double-fork", "ollama", _stray("ollama", "tagged"),
             seen=lambda s, pid: until(lambda: dead([pid]), "the double-forked child to end"),
             promise="a child in a session of its own ends with its engine"),
        _row("double-fork-bare", "vllm", _stray("vllm", "bare"),
             seen=lambda s, pid: until(lambda: dead([pid]), "the child with no environment to end"),
             promise="a double-forked child with a cleared environment is found and ended"),
        *(
            _row(f"lying-health-{n}", n, switch(n, hang=True), seen=shut(n), undo=off(n),
                 tells=("stuck|unhealthy",), promise="health says 200, nothing is answered: restarted")
            for n in ("vllm",)
        ),
        *(
            _row(f"health-500-{n}", n, switch(n, health_status=500), seen=shut(n), undo=off(n),
                 tells=("unhealthy",), promise="door shut while it says so; open when it is well")
            for n in ("vllm", "ollama")
        ),
        *(
            _row(f"flood-{kind}", "vllm", switch("vllm", flood=kind), seen=_flood, undo=off("vllm"), tells=(), moves=(),
                 promise="output without end stays bounded on disk; no tick is late")
            for kind in ("lines", "one_line", "binary")
        ),
        *(
            _row(f"metrics-{kind}", "vllm", switch("vllm", metrics=text), seen=both(ticks_go_on(2.5), serves("vllm")),
                 undo=off("vllm"), tells=(), moves=(), promise="numbers that are none end nothing")
            for kind, text in METRICS.items()
        ),
        *(
            _row(f"port-stolen-{n}", n, _port_stolen(n), seen=told("port_taken"),
                 undo=lambda s, thief: thief.close(), tells=("exit", "port_taken"),
                 promise="the start waits and names the thief; it goes on when the port is free")
            for n in ("vllm", "tensorflow")
        ),
        *(
            _row(f"closes-port-{n}", n, switch(n, close_port=True), seen=_agree(n), tells=("unhealthy|stuck|door_broken",), undo=off(n),
                 promise="alive with a closed port: ready, route and door agree within 3 s; restarted")
            for n in NAMES
        ),
        *(
            _row(f"oom-{n}", n, switch(n, _asked(n), oom_next_request=True),
                 seen=told("oom|runner_died", n), undo=off(n), tells=("oom|runner_died",), promise="an OOM is told with its class")
            for n in ("vllm", "ollama")
        ),
        _row("oom-tensorflow", "tensorflow", switch("tensorflow", _asked("tensorflow"), oom_next_request=True), undo=off("tensorflow"),
             tells=(), moves=(), promise="a full pool answers 429 and stays up: no restart"),
        _row("too-big-at-start", "vllm", switch("vllm", hit(main_of("vllm")), weights_bytes=20 << 30),
             seen=told("oom", "vllm"), undo=_resumed("vllm"), tells=("oom",), promise="it does not fit its cap: said; back when it fits"),
        _row("hung-start", "tensorflow", _hung_start, seen=_neighbour_up, undo=_restarted("vllm"),
             moves=("vllm", "tensorflow"), promise="one hung start holds no crashed neighbour for longer than about 60 s"),
        _row("slow-release", "vllm", _slow_release, undo=lambda s, _: s.gpu.set_release_lag(0), seen=told("released", "vllm"),
             tells=("released",), promise="the next start waits for the bytes of the dead"),
        _row("secret-in-last-words", "vllm", _last_words, seen=_secret_nowhere, undo=_resumed("vllm"),
             promise="a secret of the engine's environment stands on no surface"),
        _row("leak", "vllm", switch("vllm", leak_mib_per_s=900, leak_max_mib=3000), seen=told("leak|pressure_rise|reclaim|restart|throttle"),
             undo=_leak_off, tells=(), promise="an engine over its cap is throttled, then restarted; neighbours are not touched"),
        _row("stop-warden", "vllm", hit(_warden("vllm"), STOP), seen=both(ticks_go_on(2.0), serves("vllm")), undo=lambda s, pid: s.kill(pid, CONT), tells=(),
             promise="a warden that stands still holds up no request"),
        _row("kill-warden-and-engine", "vllm", _warden_and_engine, promise=_BACK),
        *(_row(f"kill-warden-{n}", n, hit(_warden(n)), seen=gone, tells=(), promise="its engine goes on and is still guarded, or is started anew") for n in NAMES),
        _row("stop-cont", "vllm", hit(main_of("vllm"), STOP), seen=lambda s, _: stays(lambda: True, "", 1.0),
             undo=lambda s, pid: s.kill(pid, CONT), tells=(), moves=(), promise="a pause of a second is no fault"),
        _row("restart-storm", "vllm", _restart_storm,
             tells=("stop|restart",), promise="thirty orders at once are one restart after the other, never two engines"),
        _row("stop-all", "vllm", lambda s: s.admin("/v1/admin/stop-all"), seen=phase("vllm", "stopped"),
             undo=_resume_all, tells=("stop|stopped_by_operator",), moves=NAMES, promise="all stop and stay so; resume brings each back"),
    ]  # fmt: skip


def _warden(name: str) -> Any:
    """The process beside a direct backend that keeps its output and its kin."""
    return lambda stage: with_words("warden.py", f"\0{name}\0", stage.instance())[0]


def _warden_and_engine(stage: Stage) -> int:
    pids = [_warden("vllm")(stage), stage.main_pid("vllm")]
    for pid in pids:
        stage.kill(pid)
    return int(pids[1])


def _asked(name: str) -> Any:
    return lambda stage: stage.ask(name)


def _restart_storm(stage: Stage) -> None:
    for _ in range(30):
        stage.admin("/v1/admin/backends/vllm/restart")


def _restarted(name: str) -> Any:
    def undo(stage: Stage, _: Any) -> None:
        stage.fault(name)
        stage.order(name, "restart")

    return undo


def _leak_off(stage: Stage, _: Any) -> None:
    stage.fault("vllm")
    stage.order("vllm", "restart")


def _slow_release(stage: Stage) -> int:
    stage.gpu.set_release_lag(1500)
    return stage.kill(stage.main_pid("vllm"))


def _resume_all(stage: Stage, _: Any) -> None:
    for name in stage.names:
        until(lambda n=name: stage.backend(n)["phase"] == "stopped", f"{name} to stop")  # type: ignore[misc]
        stage.order(name, "resume")


def _secret_nowhere(stage: Stage, _: Any) -> None:
    """On the API, in door bodies, in files of ours, in the journal."""
    until(lambda: stage.events(stage.began, "exit", "vllm"), "the exit")
    until(lambda: stage.backend("vllm")["phase"] == "failed", "the breaker")
    surfaces = {"/v1/status": stage.get("/v1/status").text, "/metrics": stage.get("/metrics").text,
                "/v1/incidents": stage.get("/v1/incidents").text, "journal": stage.text(stage.began)}  # fmt: skip
    reply = stage.session.post(
        stage.door("vllm", "/v1/completions"), json={"model": "x"}, timeout=10
    )
    surfaces["door"] = reply.text + str(reply.headers)
    for folder in (stage.run, stage.state):
        for path in folder.rglob("*"):
            # an engine's own output is its own
            if path.is_file() and path.parent.name != "logs":
                surfaces[str(path)] = path.read_text(errors="replace")
    shown = [name for name, text in surfaces.items() if SECRET in text]
    assert not shown, f"the secret stands in {shown}"
