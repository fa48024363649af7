"""The last incidents, kept in state_dir/incidents.json over restarts and reboots."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arbiterd.model.events import ActionRecord, EventName, Incident, Severity

NAME = "incidents.json"


class IncidentStore:
    """``save`` never waits for the disk: a thread writes the newest list."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / NAME
        self.problems: list[str] = []
        self._last: tuple[Incident, ...] = ()
        self._queue: queue.SimpleQueue[tuple[Incident, ...] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def load(self) -> tuple[Incident, ...]:
        """What was kept; an unreadable file is put aside and becomes a problem, never an error."""
        try:
            rows = json.loads(self._path.read_text())
            self._last = tuple(_read(row) for row in rows)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            aside = self._path.with_suffix(".broken")
            with suppress(OSError):
                self._path.replace(aside)
            self.problems.append(f"cannot read {self._path}: {error}; kept as {aside.name}")
        return self._last

    def save(self, incidents: Sequence[Incident]) -> None:
        """Keep these from now on. Cheap when nothing has changed."""
        newest = tuple(incidents)
        if newest == self._last:
            return
        self._last = newest
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="incidents", daemon=True)
            self._thread.start()
        self._queue.put(newest)

    def close(self) -> None:
        """Write what is left."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            newest = self._queue.get()
            while not self._queue.empty() and newest is not None:
                following = self._queue.get()
                if following is None:
                    self._write(newest)
                newest = following
            if newest is None:
                return
            self._write(newest)

    def _write(self, incidents: tuple[Incident, ...]) -> None:
        """A full disk costs history, nothing else."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps([asdict(one) for one in incidents]))
            temporary.replace(self._path)


def _read(row: dict[str, Any]) -> Incident:
    return Incident(
        **{
            **row,
            "event": EventName(row["event"]),
            "severity": Severity(row["severity"]),
            "pids": tuple(row["pids"]),
            "evidence": tuple((str(key), str(value)) for key, value in row["evidence"]),
            "actions": tuple(ActionRecord(**one) for one in row["actions"]),
        }
    )
