"""Starting, finding and asking wardens (warden.py): one beside each engine of the direct launcher."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from arbiterd.act.launch import warden
from arbiterd.act.launch.base import BASE_PATH
from arbiterd.errors import LaunchError
from arbiterd.files.owned import read_owned
from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import Exit

_SCRIPT = str(Path(warden.__file__).resolve())
_NAME = os.path.basename(_SCRIPT)  # one of an earlier version has it in another folder
_STARTED_S = 60.0  # a fork and an exec, on a machine that is busy
_ENDED_S = 5.0  # from the end of the main process to the warden's word


@dataclass(frozen=True, slots=True)
class Found:
    """A warden that runs without a record of it: what its command line and its children tell."""

    backend: str
    invocation: str
    intent: str
    warden: ProcessRef
    main: ProcessRef | None


def begin(
    names: tuple[str, str, str, str], spec: Mapping[str, object]
) -> tuple[subprocess.Popen[bytes], ProcessRef]:
    """Start a warden of (instance, backend, invocation, intent) and its engine; (the warden, the engine).

    All four are its arguments: a daemon that is killed before the record is written is followed by one that
    knows from them what was started.

    Raises:
        LaunchError: the engine cannot be started.

    """
    command = [sys.executable, "-I", "-S", _SCRIPT, *names]
    process = subprocess.Popen(
        command,
        env={"PATH": BASE_PATH, "LANG": "C.UTF-8"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with suppress(BrokenPipeError), _there(process.stdin) as stdin:
        stdin.write(json.dumps(spec).encode())
    word, rest = _line(process, _STARTED_S).partition(" ")[::2]
    if word == "started":
        pid, start_time = rest.split()
        return process, ProcessRef(int(pid), int(start_time))
    process.kill()
    process.wait()
    raise LaunchError(rest or "its warden does not answer")


def exit_told(process: subprocess.Popen[bytes] | None, file: Path, one: ProcessRef | None) -> Exit:
    """How the main process ended: by the warden's word, or by the file that it left."""
    text = ""
    if process is not None:
        text = _line(process, _ENDED_S).removeprefix("exit ")
    deadline = time.monotonic() + _ENDED_S
    while not text:
        with suppress(OSError):
            text = read_owned(file).decode("ascii", "replace").strip()
        if text or one is None or not procfs.alive(one) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if not text.lstrip("-").isdigit():
        return Exit()
    return Exit(signal=-int(text)) if int(text) < 0 else Exit(code=int(text))


def _line(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Its next line, "" when none comes in time."""
    stdout = _there(process.stdout)
    out, deadline = b"", time.monotonic() + limit_s
    while not out.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stdout], [], [], left)[0]:
            return ""
        data = os.read(stdout.fileno(), 4096)
        if not data:
            return ""
        out += data
    return out.decode(errors="replace").splitlines()[0]


def _there(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process that was started with one."""
    if pipe is None:
        msg = "a warden was started without its pipes"
        raise LaunchError(msg)
    return pipe


def running(instance: str) -> list[Found]:
    """Every warden of this instance; where a record is lost, its engine is adopted by it."""
    return [found for pid in procfs.pids() if (found := _look(pid, instance))]


def _look(pid: int, instance: str) -> Found | None:
    words = procfs.argv(pid)
    if len(words) != 8 or os.path.basename(words[3]) != _NAME or words[4] != instance:
        return None
    one = procfs.ref(pid)
    if one is None:
        return None
    children = [s for p in procfs.pids() if (s := procfs.stat(p)) and s.parent == pid]
    # The engine itself leads a session; of those that it has forked away some may, too: it is the first.
    leaders = sorted((s for s in children if s.session == s.pid), key=lambda s: s.start_time)
    main = ProcessRef(leaders[0].pid, leaders[0].start_time) if leaders else None
    return Found(words[5], words[6], words[7], one, main)


def descendants(stats: Iterable[procfs.Stat], roots: Mapping[int, str]) -> dict[ProcessRef, str]:
    """Living processes below these pids, with what the pid stands for; the roots are not among them."""
    parents = {one.pid: one for one in stats}
    out: dict[ProcessRef, str] = {}
    known: dict[int, str] = dict(roots)
    for one in parents.values():
        path: list[int] = []
        current = one
        while current.pid not in known and current.parent in parents and len(path) < 1000:
            path.append(current.pid)
            current = parents[current.parent]
        owner = known.get(current.pid, "")
        known.update(dict.fromkeys(path, owner))
        if owner and one.pid not in roots and one.alive:
            out[ProcessRef(one.pid, one.start_time)] = owner
    return out
