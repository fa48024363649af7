"""Signals: SIGHUP reloads, SIGTERM and SIGINT end the daemon, with its engines or without them.

Stop or restart? Under systemd our own unit's job tells (facts/systemd.md); elsewhere every end is a stop.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Literal

from arbiterd.act.launch.systemd_job import own_job


class Signals:
    """``how``: "" while running, "stop": engines stop first, "leave": engines go on without us."""

    def __init__(self, wake: Callable[[], None], *, unit: bool) -> None:
        self._wake = wake
        self._unit = unit
        self._came: list[int] = []
        self.how: Literal["", "stop", "leave"] = ""

    def catch(self) -> None:
        """From now on."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on)

    def _on(self, number: int, _frame: object) -> None:
        self._came.append(number)
        self._wake()

    def obey(self, reload: Callable[[], None], leaving: Callable[[str], None]) -> None:
        """Act on those that came. ``leaving`` hears, once, why and how the daemon ends."""
        while self._came:
            number = self._came.pop(0)
            if number == signal.SIGHUP:
                reload()
            elif not self.how:
                leaving(self._leave(signal.Signals(number).name))

    def _leave(self, why: str) -> str:
        by, self.how = why, "stop"
        if self._unit:
            job = own_job()
            self.how = "stop" if job == "stop" else "leave"
            by = f"{why}, job {job}"
        doing = "stopping every backend" if self.how == "stop" else "backends keep running"
        return f"leaving ({by}): {doing}"
