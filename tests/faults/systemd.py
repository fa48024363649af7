"""Faults where systemd matters: units, D-Bus, journald, users, firewalls; and used-up memory and pids."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from tests.faults.by_hand import (
    CONT,
    STOP,
    Crowd,
    both,
    hit,
    in_background,
    let_go,
    main_of,
    no_false_death,
    part_of,
    serves,
    shut,
    ticks_go_on,
    told,
)
from tests.faults.row import Fault
from tests.faults.stage import Stage, stays, until

KIND = "systemd"
UNIT, GATEWAY, GATE = (
    "gpu-arbiter.service",
    "gpu-arbiter-gateway.service",
    "gpu-arbiter-gate.service",
)
_BACK = "systemd brings it back; engines keep their processes"


def _row(
    name: str,
    inject: Any,
    promise: str = _BACK,
    *,
    kind: str = KIND,
    stage: str = "box",
    **more: Any,
) -> Fault:
    return Fault(f"{kind}-{name}", kind, stage, inject, promise, **more)


def sh(line: str) -> Any:
    """A shell line in the box."""
    from tests.faults.inside import shell

    return lambda stage: shell(line)


def undo_sh(line: str) -> Any:
    """The same as an undo."""
    from tests.faults.inside import shell

    return lambda stage, _: shell(line)


def _unit(name: str) -> str:
    return f"gpu-arbiter-backend-{name}.service"


def _daemon(stage: Stage) -> int:
    return stage.daemon_pid()


def _gate(stage: Stage) -> int:
    return stage.gate_pid()


def _worker(stage: Stage) -> int:
    return stage.haproxy_pids()[-1]


def _master(stage: Stage) -> int:
    return stage.haproxy_pids()[0]


def _new(which: Any) -> Any:
    def look(stage: Stage, pid: int) -> None:
        until(lambda: which(stage) not in (0, pid), "another process in its place", 80)

    return look


def _as_nobody(stage: Stage) -> None:
    """Another user's orders are refused; the socket does not even open for it."""
    line = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "/opt/gpu-arbiter/bin/arbiterctl",
        "stop-all",
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 69, done


def _as_engine(line: str) -> Any:
    """What an engine's user tries; it must fail."""

    def inject(stage: Stage) -> None:
        done = subprocess.run(["setpriv", "--reuid", "gpu-engines", "--regid", "gpu-engines", "--clear-groups", "sh", "-c", line],
                              capture_output=True, text=True, check=False, cwd="/")  # fmt: skip
        assert done.returncode != 0, f"{line} worked for an engine's user: {done.stdout}"

    return inject


def _dbus_stopped(stage: Stage) -> None:
    """And an engine dies meanwhile."""
    subprocess.run(
        ["systemctl", "stop", "dbus.socket", "dbus.service"], check=True, capture_output=True
    )
    time.sleep(2.0)


def _engine_dies(name: str) -> Any:
    def look(stage: Stage, _: Any) -> None:
        stage.kill(stage.main_pid(name))
        time.sleep(1.0)

    return look


def _journal_gone(stage: Stage) -> None:
    subprocess.run(["systemctl", "stop", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service"],
                   check=True, capture_output=True)  # fmt: skip


def _journal_back(stage: Stage, _: Any) -> None:
    subprocess.run(["systemctl", "start", "systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald.service"],
                   check=True, capture_output=True)  # fmt: skip


def _loaded_journal(stage: Stage, _: Any) -> None:
    stays(lambda: stage.get("/livez", 5).status_code == 200, "/livez", 3.0)
    serves("vllm", "ollama", for_s=0.5)(stage, None)


def _run_deleted(stage: Stage) -> None:
    for one in Path("/run/gpu-arbiter").glob("*"):
        with suppress(OSError):
            shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()


def _mounted(folder: str) -> Any:
    """A full file system over a folder: the daemon's own mount namespace gets it, too, where it is shared."""

    def inject(stage: Stage) -> str:
        filler = Path(folder) / "filler"
        subprocess.run(f"head -c 4G /dev/zero > {filler} 2>/dev/null", shell=True, check=False)
        return str(filler)

    return inject


def _room(stage: Stage, filler: str) -> None:
    Path(filler).unlink(missing_ok=True)


def _symlinks(stage: Stage) -> Path:
    """A dead daemon, and links in the place of its files that point at a file of root's."""
    target = Path("/etc/planted")
    target.write_text("not to be written\n")
    pid = stage.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    for name in ("incidents.json", "gpus.json"):
        place = stage.state / name
        place.unlink(missing_ok=True)
        place.symlink_to(target)
    os.kill(pid, signal.SIGKILL)
    return target


def _not_followed(stage: Stage, target: Path) -> None:
    stage.revive()
    time.sleep(2.0)
    assert target.read_text() == "not to be written\n", "a link in state_dir was followed"


def _fill(port: int, count: int, first: bytes = b"") -> Any:
    return lambda stage: Crowd().fill(port, count, first)


def _limit(unit: str, *values: str) -> Any:
    def inject(stage: Stage) -> None:
        subprocess.run(
            ["systemctl", "set-property", "--runtime", unit, *values],
            check=True,
            capture_output=True,
        )

    return inject


def _unlimited(unit: str, *values: str) -> Any:
    return lambda stage, _: subprocess.run(
        ["systemctl", "set-property", "--runtime", unit, *values], check=False, capture_output=True
    )


def _engine_memory(stage: Stage) -> None:
    """Its unit's limit is used up: the kernel ends it."""
    _limit(_unit("vllm"), "MemoryMax=600M")(stage)
    stage.fault("vllm", host_mib=1024)


def _engine_pids(stage: Stage) -> None:
    """A fork bomb of 200 in a unit that has room for 100 tasks, threads of the engine among them."""
    _limit(_unit("vllm"), "TasksMax=100")(stage)
    main, first = stage.main_pid("vllm"), len(stage.tagged())
    stage.fault("vllm", fork_bomb=200)
    until(lambda: len(stage.tagged()) > first + 5, "a bomb")
    stage.fault("vllm")  # the next engine, whose unit is a new one, has no bomb
    stays(lambda: len(stage.tagged()) < first + 100, "a bomb within its limit", 2.0)
    with suppress(ProcessLookupError):  # it may have died of the limit itself
        stage.kill(main)


def _daemon_pids(stage: Stage) -> None:
    """No thread more for the daemon, and an engine dies."""
    count = stage.size(stage.daemon_pid()).threads
    _limit(UNIT, f"TasksMax={count + 2}")(stage)
    stage.kill(stage.main_pid("ollama"))
    time.sleep(3.0)


def _own_limits_again(stage: Stage, _: Any) -> None:
    for name in ("vllm", "ollama"):
        stage.fault(name)
    _unlimited(UNIT, "TasksMax=infinity", "CPUQuota=")(stage, None)


def _gate_memory(stage: Stage) -> int:
    pid = stage.gate_pid()
    used = stage.size(pid).rss >> 20
    _limit(GATE, f"MemoryMax={used + 16}M")(stage)
    body = b'{"model":"qwen2.5:3b","prompt":"' + b"a" * (28 << 20) + b'"}'
    for _ in range(6):
        in_background(
            lambda: requests.post(stage.door("ollama", "/api/generate"), data=body, timeout=30)
        )
    return pid


def rows() -> list[Fault]:
    """The table."""
    live = both(ticks_go_on(1.0), serves("vllm", "ollama", for_s=0.5))
    return [
        _row("kill-daemon", hit(_daemon), tells=("adopted",), restarts_daemon=True),
        _row("stop-daemon", hit(_daemon, STOP), seen=_new(_daemon), tells=("adopted",), promise="a missed watchdog: systemd ends it and starts another"),
        _row("restart-daemon", sh(f"systemctl restart {UNIT}"), tells=("adopted",)),
        _row("restart-daemon-5-times", sh(f"for i in 1 2 3 4 5; do systemctl restart {UNIT}; done"), tells=("adopted",)),
        _row("kill-gate", hit(_gate), seen=_new(_gate)),
        _row("stop-gate", hit(_gate, STOP), seen=_new(_gate), tells=("gateway_down|door_broken",), within_s=20.0, promise="a hung load gate is replaced within 10 s"),
        _row("kill-gateway", hit(_master), seen=_new(_master)),
        _row("kill-gateway-worker", hit(_worker), seen=_new(_worker)),
        _row("stop-gateway", hit(_worker, STOP), seen=_new(_worker), tells=("gateway_down|door_broken",), promise="admin socket and door dead for 10 s: its unit is restarted"),
        _row("stop-gateway-master", hit(_master, STOP), seen=serves("vllm", "ollama"), undo=lambda s, pid: s.kill(pid, CONT), promise="doors serve on"),
        _row("gateway-stopped-by-hand", sh(f"systemctl stop {GATEWAY}"), promise="started again"),
        _row("gate-stopped-by-hand", sh(f"systemctl stop {GATE} || true"), promise="started again"),
        _row("gateway-reload-storm", sh(f"for i in $(seq 20); do systemctl reload {GATEWAY}; done"), promise="doors stay open"),
        *(_row(f"kill-{n}", hit(main_of(n)), tells=("exit",), moves=(n,), kind="engine-unit", promise="cleaned up by its cgroup, started anew") for n in ("vllm", "ollama")),
        _row("kill-core", hit(part_of("vllm", "vllm_core")), tells=("exit",), moves=("vllm",), kind="engine-unit", promise="exit 0 unasked is read from the unit"),
        _row("double-fork", _stray, tells=("exit",), moves=("vllm",), kind="engine-unit", promise="the cgroup names it, whatever its environment"),
        _row("fork-bomb", _bomb, tells=("exit",), moves=("vllm",), kind="engine-unit", promise="all 200 end with their engine"),
        _row("killed-by-systemctl", sh(f"systemctl kill -s KILL {_unit('vllm')}"), tells=("exit",), moves=("vllm",), kind="engine-unit", promise="started anew"),
        _row("stopped-by-hand", sh(f"systemctl stop {_unit('ollama')}"), seen=told("stopped_by_operator"), undo=lambda s, _: s.order("ollama", "resume"),
             tells=("stopped_by_operator",), moves=("ollama",), kind="engine-unit", promise="a person's will: it stays stopped until resume"),
        _row("stopped-engine", hit(main_of("ollama"), STOP), seen=shut("ollama"), tells=("unhealthy|stuck",), moves=("ollama",), kind="engine-unit", promise="noticed and restarted"),
        _row("slice-stopped", sh("systemctl stop gpu-arbiter.slice"), undo=_all_resume, moves=("vllm", "ollama"), tells=("stopped_by_operator|exit",), kind="engine-unit", promise="the emergency handle; resume brings all back"),
        _row("engine-frozen", sh(f"systemctl freeze {_unit('vllm')}"), seen=lambda s, _: time.sleep(1.0), undo=undo_sh(f"systemctl thaw {_unit('vllm')}"), moves=("vllm",), kind="engine-unit", promise="thawed, or restarted"),
        _row("dbus-restarted", sh("systemctl restart dbus.service || systemctl restart dbus-broker.service"), seen=live, promise="D-Bus is connected again"),
        _row("dbus-restarted-then-engine-dies", sh("systemctl restart dbus.service || systemctl restart dbus-broker.service"), seen=_engine_dies("vllm"), moves=("vllm",), tells=("exit",), promise="the next order goes over the new bus"),
        _row("dbus-stopped", _dbus_stopped, seen=live, undo=undo_sh("systemctl start dbus.socket dbus.service"), promise="nothing is judged without a bus; service goes on"),
        _row("dbus-stopped-engine-dies", _dbus_stopped, seen=both(_engine_dies("ollama"), serves("vllm")), undo=undo_sh("systemctl start dbus.socket dbus.service"), moves=("ollama",), promise="back when the bus is"),
        _row("journald-restarted", sh("systemctl restart systemd-journald"), seen=live),
        _row("journald-killed", sh("systemctl kill -s KILL systemd-journald"), seen=live),
        _row("journald-stopped", _journal_gone, seen=_loaded_journal, undo=_journal_back, promise="entries that cannot be written hold up nothing"),
        _row("journald-hung", sh("systemctl kill -s STOP systemd-journald"), seen=_loaded_journal, undo=undo_sh("systemctl kill -s CONT systemd-journald"), promise="entries that cannot be written hold up nothing"),
        _row("daemon-reload", sh("for i in 1 2 3 4 5; do systemctl daemon-reload; done"), seen=live),
        _row("daemon-reexec", sh("systemctl daemon-reexec"), seen=live),
        _row("run-deleted", _run_deleted, seen=lambda s, _: time.sleep(3.0), promise="the daemon ends, systemd makes the folder anew, engines are adopted by their units alone", restarts_daemon=True, tells=("adopted",)),
        _row("ruleset-flushed", sh("nft flush ruleset 2>/dev/null || true"), seen=live, promise="the rule is missed within a minute and set again"),
        _row("other-users-orders", _as_nobody, promise="refused", kind="access"),
        *(_row(f"engine-user-{name}", _as_engine(line), promise="refused", kind="access") for name, line in {
            "writes-state": "echo x > /var/lib/gpu-arbiter/incidents.json", "writes-run": "echo x > /run/gpu-arbiter/x", "writes-doors": "echo x > /run/gpu-arbiter/gateway/haproxy.cfg",
            "writes-records": "touch /run/gpu-arbiter/backends/x", "opens-admin": "test -w /run/gpu-arbiter/admin.sock",
            "kills-daemon": "kill -9 $(systemctl show -P MainPID gpu-arbiter)", "reads-config-keys": "cat /run/gpu-arbiter/gateway/keys/* 2>/dev/null",
        }.items()),
        _row("links-in-state", _symlinks, undo=_not_followed, tells=("adopted",), promise="links in state_dir are not followed", kind="access"),
        _row("idle-4100", _fill(9480, 4100), seen=both(no_false_death, serves("vllm", "ollama", for_s=0.5)), undo=let_go, promise="idle connections to the API blind nothing", kind="api-unit"),
        _row("idle-10000", _fill(9480, 10_000), seen=both(no_false_death, serves("vllm", "ollama", for_s=0.5)), undo=let_go, promise="ten thousand idle connections blind nothing", kind="api-unit"),
        _row("slow-4000", _fill(8000, 4000, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"), seen=serves("ollama"), undo=let_go, promise="slow connections shut no door", kind="api-unit"),
        _row("memory-of-an-engine", _engine_memory, seen=told("exit", "vllm"), undo=_own_limits_again, tells=("exit",), moves=("vllm",), kind="resources", stage="hybrid", promise="the kernel ends it, its neighbours go on"),
        _row("pids-of-an-engine", _engine_pids, undo=_own_limits_again, tells=("exit",), moves=("vllm",), kind="resources", stage="hybrid", promise="a fork bomb stops at its unit's limit"),
        _row("pids-of-the-daemon", _daemon_pids, undo=_own_limits_again, moves=("ollama",), kind="resources", stage="hybrid", promise="no thread more: what it cannot do is done later"),
        _row("cpu-of-the-daemon", _limit(UNIT, "CPUQuota=10%"), seen=lambda s, _: time.sleep(6.0), undo=_own_limits_again, kind="resources", stage="hybrid", promise="a starved daemon takes its own lateness for nobody's fault"),
        _row("memory-of-the-gate", _gate_memory, seen=_new(_gate), undo=_unlimited(GATE, "MemoryMax=1G"), kind="resources", stage="hybrid", promise="ended by the kernel, started again"),
        _row("fds-of-the-daemon", _few_fds, seen=lambda s, _: time.sleep(4.0), undo=_many_fds, kind="resources", stage="hybrid", promise="used-up descriptors are nobody's death"),
    ]  # fmt: skip


def _all_resume(stage: Stage, _: Any) -> None:
    time.sleep(1.0)
    for name in stage.names:
        until(lambda n=name: stage.backend(n)["phase"] != "stopping", "the end of a stop")  # type: ignore[misc]
        if stage.backend(name)["phase"] == "stopped":
            stage.order(name, "resume")


def _stray(stage: Stage) -> int:
    main = stage.main_pid("vllm")
    stage.fault("vllm", double_fork="bare")
    from arbiterd.linux import procfs

    found = until(lambda: [p for p in stage.tagged() if "stray" in procfs.command(p)], "the stray")
    stage.fault("vllm")
    stage.kill(main)
    return int(found[0])


def _bomb(stage: Stage) -> int:
    main = stage.main_pid("vllm")
    stage.fault("vllm", fork_bomb=200)
    until(lambda: len(stage.tagged()) > 200, "200 children")
    stage.fault("vllm")
    return stage.kill(main)


def _few_fds(stage: Stage) -> tuple[Crowd, int]:
    pid = stage.daemon_pid()
    used = len(os.listdir(f"/proc/{pid}/fd"))
    most = _soft_fds(pid, used + 10)
    return Crowd().fill(9480, 100), most


def _many_fds(stage: Stage, made: tuple[Crowd, int]) -> None:
    made[0].close()
    _soft_fds(stage.daemon_pid(), made[1])


def _soft_fds(pid: int, soft: int) -> int:
    """Set the soft limit of a process as its own user and group may; returns the one before."""
    words = Path(f"/proc/{pid}/status").read_text().split("Gid:")[1].split()
    line = ["setpriv", "--regid", words[0], "--clear-groups", "prlimit", "--pid", str(pid)]
    before = subprocess.run(
        [*line, "--nofile", "-o", "SOFT", "--noheadings"],
        check=True,
        capture_output=True,
        text=True,
    )
    subprocess.run([*line, f"--nofile={soft}:"], check=True, capture_output=True)
    return int(before.stdout)
