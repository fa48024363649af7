"""What every launcher can do. Two files implement it: systemd.py and direct.py; one
contract test suite (tests/act/test_launcher_contract.py) holds for both.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from arbiterd.errors import LaunchError
from arbiterd.files import bounded, env_text, unwritten
from arbiterd.files.placing import EVERYONE_FILE, make_folder
from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import FileSpec, LaunchSpec, UnitObservation
from arbiterd.store import atomic

BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Launcher(Protocol):
    """Starts, watches and stops backends. Engines survive the launcher."""

    @property
    def name(self) -> Literal["systemd", "direct"]:
        """Which one."""

    def adopt(self) -> None:
        """Find what is alive from before. Called once, before the first ``observe``."""

    def observe(self, now: float) -> dict[str, UnitObservation]:
        """Every unit of ours that is not ABSENT. Never blocks; called each tick."""

    def watch(self, backends: Collection[str]) -> None:
        """Measure signs of progress of these backends, and of no others (UnitObservation)."""

    def start(self, spec: LaunchSpec) -> None:
        """Start a unit; returns once its main process runs.

        Raises:
            LaunchError: it cannot be started, or is there already.

        """

    def stop(self, backend: str, grace_s: float) -> None:
        """TERM to the main process, ``grace_s`` later KILL to the whole cgroup; returns when it is
        empty and the unit forgotten. Without a unit: success.

        Raises:
            LaunchError: something does not die.

        """

    def kill_processes(self, refs: Sequence[ProcessRef]) -> None:
        """SIGKILL by identity; a process that is gone already is fine."""

    @property
    def can_freeze(self) -> bool:
        """Whether freeze is offered (facts/systemd.md; the direct launcher does not)."""

    def freeze(self, backend: str, for_s: float) -> None:
        """Arm a timer outside of this process that thaws, freeze the whole cgroup, thaw after
        ``for_s`` seconds; returns when it is thawed.

        Raises:
            LaunchError: it cannot be frozen (no unit, no freezer), or does not thaw.

        """

    def thaw(self, backend: str) -> None:
        """Thaw now; without a frozen unit: success."""

    def make_nodes(self, nodes: Sequence[str]) -> None:
        """Make device nodes by the driver's own program (systemd; the direct launcher leaves that to
        CUDA, which nothing confines there).

        Raises:
            LaunchError: they cannot be made.

        """

    def owner_of(self, pid: int) -> tuple[str, str] | None:
        """(backend, unit) of a process of ours, leftovers included; None: foreign."""

    def cgroups(self, backend: str) -> tuple[str, ...]:
        """Cgroup paths (as /proc/PID/cgroup writes them) that hold this backend's processes and
        nobody else's; (): it has none of its own.
        """

    def tail(self, backend: str, lines: int) -> tuple[str, ...]:
        """Last lines of the last invocation's output, oldest first. May block for a second."""

    def close(self) -> None:
        """Let go of threads and descriptors; engines go on."""


def resolve_command(argv: Sequence[str], path: str = BASE_PATH) -> str:
    """Absolute path of argv[0].

    Raises:
        LaunchError: not found, or not executable.

    """
    if not argv:
        msg = "cannot start: the command is empty"
        raise LaunchError(msg)
    program = argv[0]
    found = shutil.which(program, path=path)
    if found is None:
        where = "" if "/" in program else f" in {path}"
        why = "is not executable" if os.path.exists(program) else f"is not there{where}"
        msg = f"cannot start {program}: it {why}; write its full path in command"
        raise LaunchError(msg)
    return os.path.abspath(found)


def home_of(user: str) -> str:
    """The user's home, "/" where there is none."""
    try:
        home = pwd.getpwnam(user).pw_dir
    except KeyError:
        return "/"
    return home if os.path.isdir(home) else "/"


def signal_exactly(one: ProcessRef, number: signal.Signals) -> None:
    """Signal this process and no other: between check and signal a pidfd's pid changes no hands. One
    that is gone, or not ours to signal, is left. Where no descriptor is left, its pid has to do, while
    its start time can still be read.
    """
    if one.pid in (0, 1, os.getpid()):
        return
    try:
        fd = procfs.pidfd(one.pid)
    except OSError as error:
        if error.errno in procfs.SHORT:
            with suppress(OSError):
                if procfs.ref(one.pid) == one:
                    os.kill(one.pid, number)
        return
    try:
        if procfs.alive(one):
            signal.pidfd_send_signal(fd, number)
    except OSError:
        return
    finally:
        os.close(fd)


def write_files(folder: Path, files: Sequence[FileSpec]) -> None:
    """Write an engine's files, readable for its user, whoever that is. They hold no secret.

    Raises:
        LaunchError: they cannot be written.

    """
    path = folder
    try:
        make_folder(folder)
        for spec in files:
            path = folder / spec.name
            atomic.write(path, spec.content.encode(), mode=EVERYONE_FILE)
    except OSError as error:
        raise _cannot_start(folder.name, path, error) from None


def put_files(folder: Path, spec: LaunchSpec) -> str:
    """Write what systemd and the engine read at the start: the engine's files, and ``spec.env``, which
    is root's alone. Returns the path of the latter.

    Raises:
        LaunchError: env_file is not there: systemd's own word for that names no file; or ours cannot be
            written.

    """
    if spec.env_file and not os.path.isfile(spec.env_file):
        msg = f"cannot read env_file {spec.env_file}: it is not there"
        raise LaunchError(msg)
    write_files(folder / spec.backend, spec.files)
    path = folder / f"{spec.backend}.env"
    try:
        atomic.write(path, env_text.render(spec.env).encode(), mode=0o600)
    except OSError as error:
        raise _cannot_start(spec.backend, path, error) from None
    return str(path)


def _cannot_start(backend: str, path: Path, error: OSError) -> LaunchError:
    unwritten.written(path)  # made anew at the next start
    why = error.strerror or error
    return LaunchError(f"cannot start {backend}: cannot write {path}: {why}; make room: df -h")


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write an adoption record, now or as soon as it can be. The next daemon acts on it, so nobody else
    may write it.
    """
    with suppress(OSError):
        atomic.write(path, json.dumps(record).encode())


def forget_record(path: Path) -> None:
    """Remove an adoption record, one that is still to be written as well."""
    unwritten.written(path)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def secrets_of(spec: LaunchSpec) -> dict[str, str]:
    """What env_file gives to this launch: neither what the arbiter decides nor what ``env`` says.

    Raises:
        LaunchError: the file cannot be read.

    """
    if not spec.env_file:
        return {}
    found = read_env_file(spec.env_file)
    return {k: v for k, v in found.items() if k not in spec.env and k not in spec.unset}


def read_env_file(path: str) -> dict[str, str]:
    """Read NAME=VALUE lines as systemd's EnvironmentFile= does.

    Raises:
        LaunchError: the file cannot be read.

    """
    try:
        text = bounded.regular(path, bounded.FILE_BYTES).decode()
    except OSError as error:
        msg = f"cannot read env_file {path}: {error.strerror}"
        raise LaunchError(msg) from None
    except UnicodeDecodeError:
        msg = f"cannot read env_file {path}: it is not UTF-8"
        raise LaunchError(msg) from None
    return env_text.parse(text)
