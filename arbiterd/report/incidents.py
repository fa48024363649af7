"""The last incidents, kept in state_dir/incidents.json over restarts and reboots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from arbiterd.model.events import ActionRecord, EventName, Incident, Severity
from arbiterd.report.kept import Kept


class IncidentStore(Kept[Incident]):
    """Newest first, as core lists them."""

    name = "incidents.json"

    def load(self) -> tuple[Incident, ...]:
        """What was kept."""
        return self.load_all()

    def save(self, incidents: Sequence[Incident]) -> None:
        """Keep these from now on."""
        self.save_all(incidents)

    def encode(self, one: Incident) -> object:
        """All fields."""
        return asdict(one)

    def decode(self, row: Any) -> Incident:
        """One incident."""
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
