"""The snapshot that the API, metrics and STATUS= are rendered from: replaced whole, never edited."""

from __future__ import annotations

from dataclasses import dataclass

from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings


@dataclass(frozen=True, slots=True)
class PortGuard:
    """Whether the engine ports are closed to local users. ``ports``: those that the rule is for, () where
    the file wants none; ``problem``: why it is not in force, "" when it is.
    """

    closed: bool = False
    ports: tuple[int, ...] = ()
    problem: str = "not looked at yet"


@dataclass(frozen=True, slots=True)
class LoopFacts:
    """The loop about itself. ``finished_at`` is monotonic seconds of the last finished tick; ``stalls``:
    how often it was held up, ``stalled_s``: for how many seconds in all; ``late_s``: seconds by
    which ticks began late, in all; ``missed``: ticks that were late by a whole poll.
    """

    tick: int
    period_ms: int
    last_tick_ms: float
    finished_at: float
    launcher: str
    config_pending: bool = False
    config_refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ports: PortGuard = PortGuard()
    stalls: int = 0
    stalled_s: float = 0.0
    late_s: float = 0.0
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """One finished tick."""

    version: str
    settings: Settings
    observation: Observation
    decision: Decision
    loop: LoopFacts
