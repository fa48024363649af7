"""Faults of the daemon and of what it is asked: it dies, stands still, starves; its clients attack it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.by_hand import Crowd, both, let_go, no_false_death, serves, ticks_go_on
from tests.faults.direct import DirectStage
from tests.faults.row import Fault
from tests.faults.stage import Missing, Stage, until

KIND = "daemon"
_LIVES = "engines and doors go on; the next daemon adopts them, their pids unchanged"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
YEAR_S = 365 * 86400


def _row(name: str, inject: Any, promise: str = _LIVES, kind: str = KIND, **more: Any) -> Fault:
    return Fault(f"{kind}-{name}", kind, "direct", inject, promise, **more)


def _kill(stage: Stage) -> None:
    assert isinstance(stage, DirectStage)
    stage.kill_daemon()


def _signals(*numbers: signal.Signals, count: int = 1) -> Any:
    def inject(stage: Stage) -> None:
        for _ in range(count):
            for number in numbers:
                os.kill(stage.daemon_pid(), number)

    return inject


def _abort(stage: Stage) -> None:
    """As systemd's watchdog does it: the daemon writes its stacks, then ends."""
    pid = stage.daemon_pid()
    os.kill(pid, signal.SIGABRT)
    until(lambda: stage.daemon_pid() != pid, "the daemon to end")


def _pause(seconds: float, times: int = 1) -> Any:
    """The daemon alone stands still, as a stopped or starved one does."""

    def inject(stage: Stage) -> None:
        pid = stage.daemon_pid()
        for _ in range(times):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.3)

    return inject


def _no_false_alarm(stage: Stage, _: Any) -> None:
    """What stood still was the daemon, not the driver and not an engine."""
    until(lambda: stage.status()["loop"]["tick"], "a tick")
    ticks_go_on(1.5)(stage, None)
    wrong = [one["MESSAGE"] for one in stage.events(stage.began)
             if one["ARBITER_EVENT"] in ("driver_hung", "stuck", "unhealthy", "gateway_down", "door_broken", "exit", "restart", "crash_loop")]  # fmt: skip
    if wrong:
        msg = f"a pause of the daemon is taken for {wrong}"
        raise Missing(msg)


def _silent_reader(stage: Stage) -> tuple[int, int]:
    """A new daemon whose stderr is a full pipe that nobody reads."""
    assert isinstance(stage, DirectStage)
    stage.kill_daemon()
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 512)
    except BlockingIOError:
        os.set_blocking(write, True)
    stage.start(stderr=write)
    return read, write


def _read_again(stage: Stage, ends: tuple[int, int]) -> None:
    assert isinstance(stage, DirectStage)
    for end in ends:
        os.close(end)
    stage.restart()


def _broken_pipe(stage: Stage) -> tuple[int, int]:
    read, write = _silent_reader(stage)
    os.close(read)
    return write, os.dup(write)


def _clock(*jumps_s: int) -> Any:
    """A new daemon under libfaketime, then the clock is set, the monotonic one left as it is."""

    def inject(stage: Stage) -> Path:
        assert isinstance(stage, DirectStage)
        stamp = stage.home / "clock"
        stamp.write_text("+0")
        stage.restart(
            {
                "LD_PRELOAD": FAKETIME,
                "FAKETIME_TIMESTAMP_FILE": str(stamp),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        )
        for jump in jumps_s:
            stamp.write_text(f"{jump:+d}")
            year = time.gmtime(time.time() + jump).tm_year
            until(partial(_shows, stage, year), "the daemon's new clock")
            ticks_go_on(1.5)(stage, None)
        return stamp

    return inject


def _shows(stage: Stage, year: int) -> bool:
    """The daemon's own clock, by the Date of its answers."""
    return int(stage.get("/livez").headers["Date"].split()[3]) == year


def _real_clock(stage: Stage, _: Any) -> None:
    assert isinstance(stage, DirectStage)
    stage.restart()


def _starve_fds(stage: Stage) -> Crowd:
    """Room for twenty more descriptors, and clients that take them."""
    pid = stage.daemon_pid()
    used = len(os.listdir(f"/proc/{pid}/fd"))
    import resource

    most = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, most))
    return Crowd().fill(stage.listen, 200)


def _feed_fds(stage: Stage, made: Crowd) -> None:
    import resource

    made.close()
    pid = stage.daemon_pid()
    most = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


def _lean_ticks(stage: Stage, _: Any) -> None:
    """Ticks go on, seen through the metric of the admin socket's neighbour: the doors' own health."""
    time.sleep(2.0)
    serves("vllm", "ollama", for_s=0.5)(stage, None)


def _crowd(count: int, first: bytes = b"") -> Any:
    return lambda stage: Crowd().fill(stage.listen, count, first)


def _hostile(stage: Stage) -> None:
    """Requests that are none: all are answered below 500, or cut."""
    for query in ("limit=²", "limit=-1", "limit=999999999999999999999999", "since=²", "since=99999999999999999999-01-01",
                  "since=%00", "limit=1e400", "backend=" + "x" * 4000, "limit=NaN", "since=-0001-01-01T00:00:00Z"):  # fmt: skip
        reply = stage.session.get(
            f"http://127.0.0.1:{stage.listen}/v1/incidents?{query}", timeout=10
        )
        assert reply.status_code < 500, f"{query[:40]}: {reply.status_code} {reply.text[:200]}"
    for raw in (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n", b"\0" * 4096, b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
                b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET /v1/status HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"GET " + b"/a" * 60_000 + b" HTTP/1.1\r\n\r\n"):  # fmt: skip
        answer = _raw(stage.listen, raw)
        assert not answer.startswith(b"HTTP/1.1 5"), f"{raw[:40]!r}: {answer[:200]!r}"


def _raw(port: int, data: bytes) -> bytes:
    with socket.socket() as one:
        one.settimeout(5)
        try:
            one.connect(("127.0.0.1", port))
            one.sendall(data)
            return one.recv(4096)
        except OSError:
            return b""


def _admin_storm(stage: Stage) -> None:
    """Two hundred reloads at once."""
    with ThreadPoolExecutor(16) as pool:
        for status, _ in pool.map(lambda _: stage.admin("/v1/admin/reload"), range(200)):
            assert status in (200, 409, 429, 503), status


def _admin_hostile(stage: Stage) -> None:
    for path in ("/v1/admin/backends/../../etc/passwd/drain", "/v1/admin/backends/%00/drain", "/v1/admin/backends/nobody/drain",
                 "/v1/admin/backends/" + "x" * 5000 + "/drain", "/v1/admin/nothing", "/v1/admin/backends/vllm/format-disk"):  # fmt: skip
        status, _ = stage.admin(path)
        assert 400 <= status < 500, f"{path[:60]}: {status}"


def _page_viewers(stage: Stage) -> Crowd:
    """Fifty pages that poll, for 3 s."""

    def view(_: int) -> int:
        end, bad = time.monotonic() + 3.0, 0
        while time.monotonic() < end:
            bad += stage.get("/v1/status", 20).status_code != 200
        return bad

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(view, range(50))) == 0
    return Crowd()


def rows() -> list[Fault]:
    """The table."""
    kill: dict[str, Any] = {"restarts_daemon": True, "tells": ("adopted",)}
    return [
        _row("kill", _kill, **kill),
        _row("kill-while-engine-starts", _kill_amid_start, moves=("vllm",), **kill),
        _row("kill-after-engine-died", _kill_after_death, moves=("vllm",), **kill, promise="an engine that died with no daemon is found by the next"),
        _row("kill-while-draining", _kill_draining, undo=_end_drain, **kill),
        _row("abort", _abort, **kill),
        _row("hup-storm", _signals(signal.SIGHUP, count=100), seen=ticks_go_on(1.5), tells=("reload",), promise="a hundred reloads: ticks go on, nothing is touched"),
        _row("odd-signals", _signals(signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, signal.SIGURG, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT),
             seen=ticks_go_on(1.0), promise="signals that say nothing change nothing"),
        _row("paused-4s", _pause(4.0), seen=_no_false_alarm, tells=("loop_stalled",), promise="its own stall is told as such, never as a hung driver"),
        _row("paused-12s", _pause(12.0), seen=_no_false_alarm, tells=("loop_stalled",), promise="its own stall is told as such, never as a hung driver"),
        _row("starved", _pause(1.2, 5), seen=_no_false_alarm, tells=(), promise="short pauses, again and again, are no fault of anybody's"),
        _row("stderr-unread", _silent_reader, seen=both(ticks_go_on(2.0), serves("vllm")), undo=_read_again, promise="a pipe that nobody reads holds up no tick"),
        _row("stderr-broken", _broken_pipe, seen=both(ticks_go_on(2.0), serves("vllm")), undo=_read_again, promise="a pipe without a reader ends nothing"),
        _row("clock-plus-5-years", _clock(5 * YEAR_S), seen=_no_false_alarm, undo=_real_clock, promise="the clock set by years: no timeout, no restart", needs=FAKETIME),
        _row("clock-minus-5-years", _clock(-5 * YEAR_S), seen=_no_false_alarm, undo=_real_clock, promise="the clock set by years: no timeout, no restart", needs=FAKETIME),
        _row("clock-to-and-fro", _clock(20 * YEAR_S, -20 * YEAR_S, 0), seen=_no_false_alarm, undo=_real_clock, promise="the clock set by years: no timeout, no restart", needs=FAKETIME),
        _row("fds-used-up", _starve_fds, seen=both(no_false_death, _lean_ticks), undo=_feed_fds, promise="used-up descriptors are no death of anybody's; doors go on"),
        _row("idle-4100", _crowd(4100), kind="api", seen=both(no_false_death, _lean_ticks), undo=let_go, promise="idle connections end nothing and blind nothing"),
        _row("half-requests-2000", _crowd(2000, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n"), kind="api", seen=both(no_false_death, _lean_ticks), undo=let_go,
             promise="requests that never end hold up nothing"),
        _row("hostile-requests", _hostile, kind="api", seen=ticks_go_on(0.5), promise="422, 400 or 404: never 500"),
        _row("page-viewers-50", _page_viewers, kind="api", seen=ticks_go_on(1.0), promise="fifty viewers make no tick late"),
        _row("admin-storm", _admin_storm, kind="api", seen=ticks_go_on(0.5), tells=("reload",), promise="two hundred reloads by the socket are answered"),
        _row("admin-hostile", _admin_hostile, kind="api", promise="404 or 422 for what is not there"),
    ]  # fmt: skip


def _kill_amid_start(stage: Stage) -> None:
    stage.order("vllm", "restart")
    until(lambda: stage.backend("vllm")["phase"] == "starting", "a start")
    _kill(stage)


def _kill_after_death(stage: Stage) -> None:
    pid = stage.main_pid("vllm")
    _kill(stage)
    stage.kill(pid)


def _kill_draining(stage: Stage) -> None:
    stage.order("vllm", "drain")
    until(lambda: stage.backend("vllm")["phase"] == "draining", "a drain")
    _kill(stage)


def _end_drain(stage: Stage, _: Any) -> None:
    stage.revive()
    until(lambda: stage.backend("vllm")["phase"] == "draining", "the drain to be carried on")
    stage.order("vllm", "resume")
