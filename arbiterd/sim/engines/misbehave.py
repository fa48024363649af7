"""What an engine may do to the host it runs on, switched on from outside (``common.Faults``).

Watched by a thread of the main process, so that a switch works at any moment of its life.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

LOOK_S = 0.05
_STRAY = "arbiterd.sim.engines.stray"


class Switches(Protocol):
    """Of ``common.Faults``."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value now."""


def begin(faults: Switches, label: str, close_ports: Callable[[], None]) -> None:
    """Before any other thread: ``ignore_sigterm`` blocks the signal for the whole process tree."""
    if faults.get("ignore_sigterm"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    watch = threading.Thread(target=_watch, args=(faults, label, close_ports), daemon=True)
    watch.start()


def _watch(faults: Switches, label: str, close_ports: Callable[[], None]) -> None:
    held: list[bytearray] = []
    acts: dict[str, Callable[[Any], object]] = {
        "fork_bomb": lambda count: _fork(int(count)),
        "double_fork": lambda how: stray(label, bare=how == "bare"),
        "close_port": lambda _: close_ports(),
        "host_mib": lambda size: held.append(bytearray(b"x") * (int(size) << 20)),
    }
    before = dict.fromkeys(acts)
    while True:
        time.sleep(LOOK_S)
        for key, act in acts.items():
            value = faults.get(key)
            if value != before[key]:  # once for each time that it is switched on
                before[key] = value
                if value:
                    act(value)
        if faults.get("flood"):
            _flood(str(faults.get("flood")))


def _fork(count: int) -> None:
    """Children that do nothing; what a limit on processes refuses is left out."""
    for _ in range(count):
        try:
            subprocess.Popen(["sleep", "600"])
        except OSError:
            time.sleep(LOOK_S)


def stray(label: str, *, bare: bool) -> None:
    """A child in a session of its own, its parent gone at once: nobody's child. ``bare``: with an empty
    environment, so that no tag is left. It ignores SIGTERM.
    """
    line = [sys.executable, "-m", _STRAY, label]
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            os.execve(line[0], line, {} if bare else dict(os.environ))
        os._exit(0)
    os.wait()


def _flood(kind: str) -> None:
    """Output without end: lines, one line that never ends, or bytes that are no text."""
    block = {
        "lines": b"INFO the same line again and again, as a broken retry loop writes it\n" * 500,
        "one_line": b"x" * 65536,
        "binary": bytes(range(256)) * 128,
    }[kind]
    for _ in range(8):
        os.write(2, block)
