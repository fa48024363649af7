"""Policies beside each other: ours, none (a plain supervisor), a threshold killer, an oracle."""

from __future__ import annotations

from arbiterd.core.backend.carry import pack
from arbiterd.core.decide import decide
from arbiterd.core.state import Carry, State
from arbiterd.daemon.loop import KEEP_EVERY_S
from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings


class Ours:
    """core.decide, and what the daemon keeps for it in files."""

    def __init__(self) -> None:
        self.runs = 0
        self.state = State(run="w0")
        self.last: Decision | None = None
        self._kept = Carry()
        self._kept_at = -1e9

    def decide(self, observation: Observation, settings: Settings) -> Decision:
        """One tick; what must survive is kept before it is carried out, as the loop does it."""
        last, self.state = decide(observation, self.state, settings)
        self.last = last
        if last.actions or last.events or observation.now - self._kept_at >= KEEP_EVERY_S:
            self._kept_at = observation.now
            self._kept = pack(self.state)
        return last

    def restart(self) -> None:
        """As the daemon does it: incidents, learned caps and what was under way are read again."""
        self.runs += 1
        incidents = self.last.incidents if self.last else ()
        learned = self.last.learned if self.last else {}
        self.state = State(
            run=f"w{self.runs}",
            incidents=incidents,
            learned=learned,
            carried=self._kept,
            good=self.state.good,
        )
