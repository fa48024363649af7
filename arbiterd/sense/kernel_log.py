"""The kernel log's NVRM lines, followed through journalctl: they name the pid behind an XID.

A help, not a need: without journalctl, or where the journal cannot be read, NVML's events remain.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from arbiterd import aside
from arbiterd.files import strict_json
from arbiterd.files.trust import tool

# -n 1: the newest line there is proves at once that the log can be read; it is history itself.
_FOLLOW = ("-k", "-f", "-n", "1", "-o", "json", "--output-fields=MESSAGE")
_MARK = b"NVRM: Xid"
_BACKOFF_S, _BACKOFF_MAX_S = 1.0, 60.0
_STEADY_S = 60.0  # a follower that ran so long starts again without a longer pause


def command() -> tuple[str, ...]:
    """How the kernel log is followed here; () when it cannot be.

    An idle journalctl does not notice that nobody reads it (252): setpriv of util-linux lets it die
    with us, however we end.
    """
    journalctl, setpriv = tool("journalctl"), tool("setpriv")
    return (setpriv, "--pdeathsig", "KILL", journalctl, *_FOLLOW) if journalctl and setpriv else ()


class KernelLog:
    """Owns the follower. ``on_message(text, at)`` gets the lines that tell of an XID and came after
    the start (``at``: monotonic seconds); ``on_heard`` is called once, by the first line of any kind.
    """

    def __init__(
        self,
        argv: Sequence[str],
        on_message: Callable[[str, float], None],
        on_heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._argv = list(argv)
        self._on_message = on_message
        self._on_heard = on_heard
        self._heard = False
        self._began_wall_us = int(time.time() * 1e6)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._thread = aside.thread(self._run, name="kernel-log")
        self._thread.start()

    def close(self) -> None:
        """End the follower (it would also end with our end of its pipe)."""
        self._closed.set()
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.terminate()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        pause = _BACKOFF_S
        while not self._closed.is_set():
            began = time.monotonic()
            with suppress(OSError):
                self._follow()
            if time.monotonic() - began > _STEADY_S:
                pause = _BACKOFF_S
            self._closed.wait(pause)
            pause = min(_BACKOFF_MAX_S, pause * 2)

    def _follow(self) -> None:
        with subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            self._process = process
            if self._closed.is_set():
                process.terminate()
            for line in process.stdout or ():
                if not self._heard:
                    self._heard = True
                    self._on_heard()
                if _MARK in line:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry = strict_json.loads(line)
            message = entry["MESSAGE"]
            stamp = int(entry.get("__REALTIME_TIMESTAMP", self._began_wall_us))
        except (ValueError, KeyError, TypeError):
            return
        if stamp < self._began_wall_us or not isinstance(message, str):
            return  # history; or bytes that are no text
        self._on_message(message, time.monotonic())
