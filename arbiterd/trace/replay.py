"""A trace, run through ``decide`` again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from arbiterd.core.decide import decide
from arbiterd.core.state import State
from arbiterd.errors import ArbiterError
from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings
from arbiterd.trace.lines import Reader


@dataclass(frozen=True, slots=True)
class Replayed:
    """One tick of a replay: what core decides now, what it decided then."""

    observation: Observation
    decision: Decision
    recorded: Decision

    @property
    def same(self) -> bool:
        """Whether every part of both decisions is the same."""
        return self.decision == self.recorded


def _in_force(state: State, recorded: Settings, given: Settings) -> State:
    """Core knows settings by identity, another object is a reload; a replay begins with none, also when
    it is run with others than it was recorded with.
    """
    first = given if state.settings == recorded else state.settings
    good = given if state.good == recorded else state.good
    return replace(state, settings=first, good=good)


def replay(reader: Reader, settings: Settings | None = None) -> Iterator[Replayed]:
    """Run a trace through core. ``settings``: others than it was recorded with.

    Raises:
        ArbiterError: a line that is none, or a tick that core cannot decide on (its cause is attached).

    """
    recorded_with = reader.header.settings
    state = _in_force(reader.header.state, recorded_with, settings or recorded_with)
    for number, (observation, recorded, own) in enumerate(reader.ticks(), 1):
        try:
            decision, state = decide(observation, state, settings or own)
        except Exception as error:
            msg = (
                f"tick {number}: core cannot decide on it: {type(error).__name__}: {error}; "
                "if nobody has edited this trace, please report it"
            )
            raise ArbiterError(msg) from error
        yield Replayed(observation, decision, recorded)
