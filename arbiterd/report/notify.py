"""sd_notify: READY=1, STATUS=, WATCHDOG=1, EXTEND_TIMEOUT_USEC=, STOPPING=1. Silent elsewhere."""

from __future__ import annotations

import sdnotify

from arbiterd.model.published import Published
from arbiterd.report.switching import line


class Notifier:
    """Talks to systemd when NOTIFY_SOCKET is set."""

    def __init__(self) -> None:
        self._systemd = sdnotify.SystemdNotifier()

    def ready(self) -> None:
        """The daemon is up: file accepted, adoption done, API open."""
        self._systemd.notify("READY=1")

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


def status_line(published: Published) -> str:
    """One line for systemctl status."""
    views = published.decision.backends.values()
    parts = [f"{view.name} {view.phase.value}" for view in views]
    text = f"mode {published.settings.mode}: " + (", ".join(parts) or "no backends")
    open_ = sum(1 for one in published.decision.incidents if one.closed_at is None)
    if published.decision.switch is not None:
        text = f"{line(published.decision.switch)}; {text}"
    if open_:
        text += f"; {open_} open incident(s)"
    loop = published.loop
    if loop.config_refused:
        text += f"; config refused: {loop.config_refused[0]}"
    elif loop.config_pending:
        text += "; config changed, not applied: systemctl reload gpu-arbiter"
    if published.decision.blind and published.observation.nvml:
        text += f"; blind: {published.observation.nvml}"
    return text
