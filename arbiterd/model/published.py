"""The snapshot that the API, metrics and STATUS= are rendered from: replaced whole, never edited."""

from __future__ import annotations

from dataclasses import dataclass

from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings


@dataclass(frozen=True, slots=True)
class LoopFacts:
    """The loop about itself. ``finished_at`` is monotonic seconds of the last finished tick."""

    tick: int
    period_ms: int
    last_tick_ms: float
    finished_at: float
    launcher: str
    config_pending: bool = False
    config_refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """One finished tick."""

    version: str
    settings: Settings
    observation: Observation
    decision: Decision
    loop: LoopFacts
