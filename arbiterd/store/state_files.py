"""What the daemon keeps over its restarts: incidents, learned caps, GPUs and keyed engines in state_dir,
the rest in runtime_dir (of this boot). Written without secrets.
"""

from __future__ import annotations

from pathlib import Path

from arbiterd.model.published import Published
from arbiterd.model.settings import ArbiterSettings
from arbiterd.secrets.redact import Redactor
from arbiterd.store.gpu_inventory import Inventory
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.json_store import JsonStore
from arbiterd.store.learned_caps import LearnedStore


class Stores:
    """All of them, opened and closed together."""

    def __init__(self, arbiter: ArbiterSettings, redactor: Redactor) -> None:
        state_dir = Path(arbiter.state_dir)
        self.incidents = IncidentStore(state_dir, redactor)
        self.learned = LearnedStore(state_dir, redactor)
        self.carry = CarryStore(Path(arbiter.runtime_dir), redactor)
        self.keyed = keyed(state_dir)
        self.gpus = Inventory(state_dir)
        self._all = (self.incidents, self.learned, self.carry, self.keyed, self.gpus.store)

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be read."""
        return tuple(problem for one in self._all for problem in one.problems)

    def save(self, published: Published) -> None:
        """Incidents and caps of this tick; never waits for the disk."""
        self.incidents.save(published.decision.incidents)
        self.learned.save(published.decision.learned)

    def close(self) -> None:
        """Write what is left."""
        for one in self._all:
            one.close()


def keyed(state_dir: Path) -> JsonStore[frozenset[str]]:
    """Names of backends that have answered 401 to a request without a key."""
    return JsonStore(state_dir / "keyed.json", _names, sorted, absent=frozenset(), sync=True)


def _names(found: object) -> frozenset[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        msg = "it is no list of names"
        raise TypeError(msg)
    return frozenset(found)
