"""A backend's warden under the direct launcher: a process of its own between daemon and engine.

Run as a script, ``python -I -S warden.py INSTANCE BACKEND INVOCATION INTENT``; the rest comes as one JSON
object on stdin, since an environment may hold secrets. It reports on stdout: ``started PID START`` or
``failed WHY``; later ``exit CODE`` (negative: a signal), which it also leaves in a file for a later daemon.

It does what only a parent can do, also while no daemon runs: as child subreaper it inherits whatever the
engine forks away, so a process with a session and an environment of its own still has it as ancestor; it
keeps the engine's output within two files of LOG_MOST bytes, without losing the end; it knows how the
engine ended. It ends by itself once nothing of the engine is left.

Standard library only, and few modules of it: one such process runs beside each engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

LOG_MOST = 4 * 1024 * 1024
_SUBREAPER = 36
_PIECE = 65536
_PIECES = 16
_LOOK_S = 1.0


class Output:
    """NAME.log and, when that is full, NAME.log.0 before it; NAME.log.1 is the run before."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        with suppress(OSError):
            os.unlink(f"{path}.0")
        with suppress(OSError):
            os.replace(path, f"{path}.1")
        self._open()

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = -1, 0
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o640)
            self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append; what a full disk does not take is lost, the engine never waits for it."""
        if self._size + len(data) > LOG_MOST:
            with suppress(OSError):
                os.replace(self._path, f"{self._path}.0")
            self._open()
        with suppress(OSError):
            if self._fd >= 0:
                self._size += os.write(self._fd, data)

    def look(self) -> None:
        """The folder may have been removed and made anew."""
        if self._fd < 0 or not os.path.exists(self._path):
            self._open()


def _report(line: str) -> None:
    with suppress(OSError):  # the daemon that started us may be gone
        os.write(1, f"{line}\n".encode())


def _reaped(main: int) -> tuple[int | None, bool]:
    """(how the main process ended, if it did now; whether any child is left)."""
    code: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, False
        if pid == 0:
            return code, True
        if pid == main:
            code = os.waitstatus_to_exitcode(status)


def _drain(pipe: int, output: Output) -> bool:
    """Write what is there now, a pipe's fill at most: who floods must not keep us from the rest. False
    at the end of it.
    """
    with suppress(BlockingIOError):
        for _ in range(_PIECES):
            data = os.read(pipe, _PIECE)
            if not data:
                return False
            output.write(data)
    return True


def _start(spec: dict[str, Any], into: int) -> int:
    """Start the engine in a session of its own; its pid.

    Raises:
        OSError, subprocess.SubprocessError, KeyError: it cannot be started.

    """
    user = spec["user"] or None
    child = subprocess.Popen(
        spec["argv"],
        env=spec["env"],
        cwd=spec["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=into,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user,
        extra_groups=[] if user else None,
    )
    child.returncode = 0  # reaped by hand
    return child.pid


def _watch(main: int, pipe: int, output: Output, wake: int, exit_file: str) -> None:
    """Until nothing of the engine is left."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(wake, select.POLLIN)
    open_ = left = True
    while left:
        poll.poll(_LOOK_S * 1000)
        with suppress(BlockingIOError):
            os.read(wake, 512)
        code, left = _reaped(main)
        output.look()
        if open_ and not _drain(pipe, output):  # its last words, before its end is told
            open_ = False
            poll.unregister(pipe)
        if code is not None:
            with suppress(OSError), open(exit_file, "w", encoding="ascii") as file:
                file.write(str(code))
            _report(f"exit {code}")


def run() -> None:
    """See the module."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    wake, woken = os.pipe()
    for fd in (wake, woken):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    # Handlers, not SIG_IGN: the engine would inherit that.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    spec = json.loads(sys.stdin.buffer.read())
    output = Output(spec["log"])
    pipe, into = os.pipe()
    os.set_blocking(pipe, False)
    try:
        main = _start(spec, into)
    except (OSError, KeyError, subprocess.SubprocessError) as error:
        _report(f"failed {error}")
        return
    os.close(into)
    with open(f"/proc/{main}/stat", encoding="utf-8", errors="replace") as file:
        start_time = file.read().rsplit(")", 1)[1].split()[19]
    _report(f"started {main} {start_time}")
    _watch(main, pipe, output, wake, spec["exit"])


if __name__ == "__main__":
    run()
