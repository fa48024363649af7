"""sd_notify: READY=1, STATUS=, WATCHDOG=1, EXTEND_TIMEOUT_USEC=, STOPPING=1. Silent elsewhere."""

from __future__ import annotations

import sdnotify

# READY=1 is said once and must arrive; all else is said again. A manager that is stopped or busy for
# longer must not stop the loop: what does not fit into its queue is dropped.
_WAIT_S, _READY_S = 0.05, 5.0


class Notifier:
    """Talks to systemd when NOTIFY_SOCKET is set."""

    def __init__(self) -> None:
        self._systemd = sdnotify.SystemdNotifier()
        given = getattr(self._systemd, "socket", None)
        if given is not None:
            given.settimeout(_WAIT_S)

    def ready(self) -> None:
        """The daemon is up: file accepted, adoption done, API open."""
        given = getattr(self._systemd, "socket", None)
        if given is not None:
            given.settimeout(_READY_S)
        self._systemd.notify("READY=1")
        if given is not None:
            given.settimeout(_WAIT_S)

    def status(self, text: str) -> None:
        """The line systemctl status shows."""
        line = text.replace("\n", " ")
        # sdnotify encodes as Latin-1 and drops in silence what does not fit; systemd wants UTF-8
        self._systemd.notify(f"STATUS={line}".encode().decode("latin-1"))

    def watchdog(self) -> None:
        """A tick was finished."""
        self._systemd.notify("WATCHDOG=1")

    def extend(self, seconds: int) -> None:
        """Starting or stopping goes on: give it so many more seconds."""
        self._systemd.notify(f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}")

    def stopping(self) -> None:
        """The end begins."""
        self._systemd.notify("STOPPING=1")
