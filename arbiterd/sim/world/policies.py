"""Policies beside each other: ours, none (a plain supervisor), a threshold killer, an oracle."""

from __future__ import annotations

from arbiterd.core.decide import decide
from arbiterd.core.state import State
from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings


class Ours:
    """core.decide and what the daemon keeps for it."""

    def __init__(self) -> None:
        self.runs = 0
        self.state = State(run="w0")
        self.last: Decision | None = None

    def decide(self, observation: Observation, settings: Settings) -> Decision:
        """One tick."""
        self.last, self.state = decide(observation, self.state, settings)
        return self.last

    def restart(self) -> None:
        """As the daemon does it: incidents are read again, and what core carries over."""
        self.runs += 1
        incidents = self.last.incidents if self.last else ()
        learned = self.last.learned if self.last else {}
        self.state = State(run=f"w{self.runs}", incidents=incidents, learned=learned)
