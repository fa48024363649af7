"""The last incidents, kept in state_dir/incidents.json over restarts and reboots."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from arbiterd.files.typed import left_out
from arbiterd.model.events import Incident
from arbiterd.report.api.common import LATEST
from arbiterd.secrets.redact import Redactor
from arbiterd.store.json_store import JsonStore

_INCIDENT = TypeAdapter(Incident)


class IncidentStore(JsonStore[tuple[Incident, ...]]):
    """Newest first, as core lists them."""

    def __init__(self, state_dir: Path, redactor: Redactor | None = None) -> None:
        super().__init__(
            state_dir / "incidents.json",
            lambda rows: tuple(self._incident(row) for row in rows),
            lambda incidents: [asdict(one) for one in incidents],
            absent=(),
            sync=True,
            redactor=redactor,
        )
        self._strange: frozenset[str] = frozenset()

    def load(self) -> tuple[Incident, ...]:
        """What was kept; keys that another version wrote and this one has no place for are told."""
        found = super().load()
        if self._strange:
            keys = ", ".join(sorted(self._strange)[:10])
            self.problems.append(f"{self.path}: written by another version; left out: {keys}")
        return found

    def _incident(self, row: Any) -> Incident:
        found = _INCIDENT.validate_python(row)
        self._strange |= frozenset(left_out(row, found))
        if not all(math.isfinite(one.took_ms or 0.0) for one in found.actions):
            msg = f"a duration of {found.id} is none"
            raise ValueError(msg)
        times = [found.opened_at, found.closed_at, *(one.started_at for one in found.actions)]
        if not all(0 <= at < LATEST for at in times if at is not None):
            msg = f"a time of {found.id} is none"
            raise ValueError(msg)
        return found
