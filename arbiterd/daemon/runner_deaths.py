"""Reads the output of running engines whose runners come and go, off the loop and only when their
processes have changed: the journal takes 30-60 ms.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from arbiterd.act.launch.base import Launcher
from arbiterd.aside import aside
from arbiterd.engines.ollama_deaths import Deaths
from arbiterd.model.health import RunnerDeath
from arbiterd.model.launch import UnitObservation, UnitState
from arbiterd.model.settings import Kind, Settings
from arbiterd.secrets.values import Secrets

LINES = 500
AGAIN_S = (0.0, 1.0, 5.0)  # after a change: the line may come later than the end of the process


@dataclass(slots=True)
class _Followed:
    """One invocation. ``last``: the newest line seen; ``due``: when to read (monotonic seconds)."""

    pids: frozenset[int]
    deaths: Deaths = field(default_factory=Deaths)
    last: str = ""
    due: list[float] = field(default_factory=list)
    reading: bool = False
    first: bool = False


class RunnerDeaths:
    """``of`` is the loop's and never waits: deaths since the last call, by backend."""

    def __init__(
        self, launcher: Launcher, on_change: Callable[[], None], secrets: Secrets | None = None
    ) -> None:
        self._launcher = launcher
        self._secrets = secrets or Secrets({})
        self._on_change = on_change
        self._born = time.time()
        self._lock = threading.Lock()
        self._followed: dict[tuple[str, str], _Followed] = {}
        self._found: list[tuple[str, RunnerDeath]] = []

    def of(
        self, units: Mapping[str, UnitObservation], settings: Settings, now: float
    ) -> tuple[tuple[str, RunnerDeath], ...]:
        """(backend, death), each once."""
        backends = settings.active.backends
        running = {
            (name, unit.invocation): unit
            for name, unit in units.items()
            if unit.state is UnitState.RUNNING
            and name in backends
            and backends[name].kind is Kind.OLLAMA
        }
        with self._lock:
            for key in [one for one in self._followed if one not in running]:
                del self._followed[key]
            for key, unit in running.items():
                self._look(key, unit, now)
            found, self._found = tuple(self._found), []
        return found

    def _look(self, key: tuple[str, str], unit: UnitObservation, now: float) -> None:
        pids = frozenset(unit.pids)
        one = self._followed.get(key)
        if one is None:
            # What an adopted engine has said before us was told by the daemon before us.
            one = self._followed[key] = _Followed(pids, first=unit.started_wall < self._born)
            one.due = [now]
        elif pids != one.pids:
            one.pids = pids
            one.due = [now + after for after in AGAIN_S]
        if one.due and now >= one.due[0] and not one.reading:
            one.due = [at for at in one.due if at > now]
            one.reading = True
            aside(self._read, key[0], one, name="runner-deaths")

    def _read(self, name: str, one: _Followed) -> None:
        lines: tuple[str, ...] = ()
        with suppress(Exception):  # no words are no evidence
            self._secrets.look()
            lines = self._secrets.redactor.lines(self._launcher.tail(name, LINES))
        with self._lock:
            new = _after(lines, one.last)
            one.last = lines[-1] if lines else one.last
            deaths = one.deaths.feed(new)
            if not one.first:
                self._found += [(name, death) for death in deaths]
            one.first = one.reading = False
        if deaths:
            self._on_change()


def _after(lines: tuple[str, ...], last: str) -> tuple[str, ...]:
    """The lines that are newer than ``last``; all of them where it is gone."""
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == last:
            return lines[index + 1 :]
    return lines
