"""The last incidents, kept in state_dir/incidents.json over restarts and reboots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from arbiterd.files.typed import left_out
from arbiterd.model.events import Incident
from arbiterd.report.api.common import LATEST
from arbiterd.store.json_store import Kept

_INCIDENT = TypeAdapter(Incident)


class IncidentStore(Kept[Incident]):
    """Newest first, as core lists them."""

    name = "incidents.json"
    _strange: frozenset[str] = frozenset()

    def load(self) -> tuple[Incident, ...]:
        """What was kept; keys that another version wrote and this one has no place for are said."""
        found = self.load_all()
        if self._strange:
            keys = ", ".join(sorted(self._strange)[:10])
            self.problems.append(f"{self._path}: written by another version; left out: {keys}")
        return found

    def save(self, incidents: Sequence[Incident]) -> None:
        """Keep these from now on."""
        self.save_all(incidents)

    def encode(self, one: Incident) -> object:
        """All fields."""
        return asdict(one)

    def decode(self, row: Any) -> Incident:
        """One incident."""
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
