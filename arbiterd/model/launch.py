"""What a launcher is asked to start, and what it reports of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from arbiterd.model.container import ContainerSpec
from arbiterd.model.devices import ProcessRef
from arbiterd.model.sandbox import SandboxSettings


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file the engine needs beside its argv; written (tmp + rename, 0644) before the start.

    ``name`` is relative to runtime_dir/backends/BACKEND/; argv names it by the placeholder
    ``{files}/NAME``, replaced by the launcher's absolute folder at planning time already.
    """

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a launcher needs. ``env`` is the whole environment beyond the launcher's base one
    (PATH, HOME, LANG, USER): nothing of the daemon's own environment reaches an engine.

    Of one variable the last of these counts: ``base`` (what an engine gets unless the operator says
    otherwise), env_file, ``env`` (the operator's env, then what the arbiter decides). ``unset``: what
    the arbiter decides to leave unset, whatever env_file says.

    ``stop_grace_s``: time between SIGTERM to the main process and SIGKILL of the whole cgroup.
    ``intent``: a digest of the configuration that concerns this backend (not of argv), so that a
    new version of ours restarts nothing (design, section 7).
    ``container``: set when argv is a container client's; it then runs as root, not as ``user``.
    ``sandbox``: what the operator changes of the unit's sandbox. ``nodes``: the GPU's device nodes that
    it may open; None: every NVIDIA node.
    """

    backend: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    intent: str
    env_file: str = ""
    files: tuple[FileSpec, ...] = ()
    user: str = ""
    stop_grace_s: float = 45.0
    ports: tuple[int, ...] = ()
    loopback_only: bool = False
    oom_continue: bool = False
    container: ContainerSpec | None = None
    base: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    sandbox: SandboxSettings = SandboxSettings()
    nodes: tuple[str, ...] | None = None


class UnitState(StrEnum):
    """State of a backend's unit (systemd) or session (direct)."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Exit:
    """How the main process ended. Both None: not known (adopted by the direct launcher)."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        """Say it as people do: 'exit code 0', 'signal 9'."""
        if self.signal is not None:
            return f"signal {self.signal}"
        return "exit status unknown" if self.code is None else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class UnitObservation:
    """What the launcher knows of one backend's unit at this tick.

    ``invocation`` changes with every start (systemd's InvocationID; a random id under direct).
    ``pids`` are all processes in its cgroup (or session and tag). ``exit`` is set once the main
    process is gone (state EXITED: main gone, perhaps with processes of the cgroup still alive; see
    ``pids``). ``intent`` is what it was started with. ``since`` is monotonic seconds.
    Signs of progress, 0 when not readable, at most a second old: ``cpu_s``, CPU seconds used by the whole
    cgroup; ``log_bytes``, a number that changes with its output (its size under direct; under systemd the
    last entry's time while a start is watched); ``io_bytes``, read and written so far, sockets included
    where they are read like files; ``memory_bytes``, resident on the host.
    ``frozen``: its cgroup is frozen. ``host_oom``: the kernel's OOM killer ended a process of it.
    """

    backend: str
    state: UnitState
    since: float
    main: ProcessRef | None = None
    pids: tuple[int, ...] = ()
    invocation: str = ""
    intent: str = ""
    exit: Exit | None = None
    cpu_s: float = 0.0
    log_bytes: int = 0
    io_bytes: int = 0
    memory_bytes: int = 0
    started_wall: float = 0.0
    frozen: bool = False
    host_oom: bool = False


ABSENT = UnitObservation(backend="", state=UnitState.ABSENT, since=0.0)
