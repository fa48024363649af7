"""What the daemon keeps over its restarts: incidents and learned caps in state_dir, the rest in
runtime_dir (of this boot). Written without secrets.
"""

from __future__ import annotations

from pathlib import Path

from arbiterd.model.published import Published
from arbiterd.model.settings import ArbiterSettings
from arbiterd.secrets.redact import Redactor
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.learned_caps import LearnedStore


class Stores:
    """The three stores, opened and closed together."""

    def __init__(self, arbiter: ArbiterSettings, redactor: Redactor) -> None:
        self.incidents = IncidentStore(Path(arbiter.state_dir), redactor)
        self.learned = LearnedStore(Path(arbiter.state_dir), redactor)
        self.carry = CarryStore(Path(arbiter.runtime_dir), redactor)

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be read."""
        return (*self.incidents.problems, *self.learned.problems, *self.carry.problems)

    def save(self, published: Published) -> None:
        """Incidents and caps of this tick; never waits for the disk."""
        self.incidents.save(published.decision.incidents)
        self.learned.save(published.decision.learned)

    def close(self) -> None:
        """Write what is left."""
        self.incidents.close()
        self.learned.close()
        self.carry.close()
