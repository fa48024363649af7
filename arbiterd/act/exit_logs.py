"""Fetches the last output of backends that have ended, off the loop: the journal takes 30-60 ms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from arbiterd.act.launch.base import Launcher
from arbiterd.aside import aside
from arbiterd.model.launch import UnitObservation, UnitState
from arbiterd.secrets.values import Secrets

LINES = 500
_MAX_AT_ONCE = 8


class LastWords:
    """Last lines per ended backend, without secrets, there as long as its unit is EXITED."""

    def __init__(
        self, launcher: Launcher, on_change: Callable[[], None], secrets: Secrets | None = None
    ) -> None:
        self._launcher = launcher
        self._secrets = secrets or Secrets({})
        self._on_change = on_change
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._words: dict[str, tuple[str, ...]] = {}
        self._slots = threading.Semaphore(_MAX_AT_ONCE)

    def of(self, units: Mapping[str, UnitObservation]) -> dict[str, tuple[str, ...]]:
        """What is there by now; asks for what is missing."""
        ended = {name for name, unit in units.items() if unit.state is UnitState.EXITED}
        with self._lock:
            self._asked &= ended
            self._words = {name: words for name, words in self._words.items() if name in ended}
            missing = ended - self._asked
            self._asked |= missing
            known = dict(self._words)
        for name in sorted(missing):
            aside(self._fetch, name, name="exit-log")
        return known

    def _fetch(self, name: str) -> None:
        with self._slots:
            try:
                self._secrets.look()
                words = self._launcher.tail(name, LINES)
            except Exception as error:  # noqa: BLE001 - a thread root; no words are words too
                words = (f"(its output cannot be read: {error})",)
        words = self._secrets.redactor.lines(words)
        with self._lock:
            if name in self._asked:
                self._words[name] = words
        self._on_change()
