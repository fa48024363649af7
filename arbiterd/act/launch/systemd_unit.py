"""A backend's transient unit: the properties it is started with, and what its state means."""

from __future__ import annotations

from dataclasses import dataclass

from arbiterd.act.launch.base import BASE_PATH
from arbiterd.act.launch.containers import SLICE, removal
from arbiterd.linux import sandbox
from arbiterd.linux.sandbox_host import sandbox_of
from arbiterd.linux.systemd_bus import Property
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import Exit, LaunchSpec, UnitState

_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Unit:
    """Newest properties of one unit."""

    backend: str
    path: str
    active: str
    sub: str
    invocation: str
    main_pid: int
    exec_pid: int
    exec_code: int
    exec_status: int
    cgroup: str
    since: float
    main: ProcessRef | None = None
    result: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Kept in runtime_dir/backends/NAME.json: what systemd cannot tell at adoption."""

    backend: str
    pid: int
    start_time: int
    invocation: str
    intent: str
    started_wall: float
    container: str = ""


def properties(
    spec: LaunchSpec, program: str, user: str, home: str, env_file: str
) -> list[Property]:
    """Properties for StartTransientUnit; why each is there stands beside it. ``env_file``: the file
    that holds ``spec.env``: anybody may read Environment= of a unit.
    """
    env = {"PATH": BASE_PATH, "HOME": home, "LANG": "C.UTF-8", **spec.base}
    files = [spec.env_file, env_file] if spec.env_file else [env_file]  # the last one wins
    stop_us = round(max(spec.stop_grace_s, 1.0) * 1_000_000)
    out: list[Property] = [
        ("Description", ("s", f"gpu-arbiter backend {spec.backend}")),
        ("Type", ("s", "exec")),  # 203/EXEC is a failed start job, not a running unit
        ("Slice", ("s", SLICE)),
        ("RemainAfterExit", ("b", True)),  # else exit 0 of a dead vLLM is forgotten in ms
        ("Restart", ("s", "no")),  # only the arbiter restarts
        ("KillMode", ("s", "mixed")),  # TERM to main only: EngineCore must drain
        ("TimeoutStopUSec", ("t", stop_us)),
        ("OOMPolicy", ("s", "continue" if spec.oom_continue else "stop")),
        ("User", ("s", user)),
        ("WorkingDirectory", ("s", home)),
        ("ExecStart", ("a(sasb)", [(program, [program, *spec.argv[1:]], False)])),
        ("Environment", ("as", [f"{key}={value}" for key, value in env.items()])),
        # 0 would not switch the limit off on 252, and the line that names the cause is the last
        ("LogRateLimitIntervalUSec", ("t", 30_000_000)),
        ("LogRateLimitBurst", ("u", 1_000_000)),
        ("LimitMEMLOCK", ("t", 2**64 - 1)),  # pinned host memory
        *sandbox.properties(sandbox_of(spec, user, home)),
        *_client(spec, program),
    ]
    out.append(("EnvironmentFiles", ("a(sb)", [(path, False) for path in files])))
    if spec.unset:
        out.append(("UnsetEnvironment", ("as", list(spec.unset))))
    if spec.loopback_only:
        loopback = [(2, b"\x7f\x00\x00\x00", 8), (10, b"\x00" * 15 + b"\x01", 128)]
        out.append(("IPAddressAllow", ("a(iayu)", loopback)))
        everyone = [(2, b"\x00" * 4, 0), (10, b"\x00" * 16, 0)]
        out.append(("IPAddressDeny", ("a(iayu)", everyone)))
    return out


def _client(spec: LaunchSpec, program: str) -> list[Property]:
    """A container client has no sandbox here: it must mount and set up, and what an engine may do its
    container says. Podman makes cgroups below its own, and its leftovers are removed here: the
    daemon's sandbox would not let it. Docker's are its daemon's: the launcher asks that.
    """
    container = spec.container
    if container is None or container.client != "podman":
        return []
    line = removal(container)
    remove = (program, [program, *line[1:]], True)
    return [
        ("Delegate", ("b", True)),
        ("ExecStartPre", ("a(sasb)", [remove])),
        ("ExecStopPost", ("a(sasb)", [remove])),
    ]


def why_failed(status: int) -> str:
    """What systemd's own exit statuses say of a start job that failed."""
    texts = {
        203: "it cannot be executed",
        217: "its user cannot be had",
        200: "no such folder",
    }
    return texts.get(status, f"it ended at once with status {status}")


def state_of(unit: Unit) -> UnitState:
    """Our word for systemd's state.

    A unit on its way down is STOPPING, its main process gone or not: only the end tells whether it
    failed by itself (it stays, failed or exited) or was stopped by a person (it vanishes).
    """
    if unit.active == "deactivating":
        return UnitState.STOPPING
    if unit.active == "failed" or unit.sub == "exited" or (unit.exec_code and not unit.main_pid):
        return UnitState.EXITED
    return UnitState.STARTING if unit.active == "activating" else UnitState.RUNNING


def exit_of(unit: Unit) -> Exit | None:
    """How the main process ended, None while it lives."""
    if state_of(unit) is not UnitState.EXITED:
        return None
    if unit.exec_code == _CLD_EXITED:
        return Exit(code=unit.exec_status)
    if unit.exec_code in (_CLD_KILLED, _CLD_DUMPED):
        return Exit(signal=unit.exec_status)
    return Exit()
