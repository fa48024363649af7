"""A switch from one layout to another, and what came of the last one, as published."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Change(StrEnum):
    """What a switch does to one backend."""

    KEEP = "keep"
    RESTART = "restart"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Step:
    """One backend of a switch. ``done``: it has come where it should be. ``doing``: its phase and why.
    ``phase``: that alone, "gone" where it is nowhere any more.
    """

    backend: str
    change: Change
    done: bool
    doing: str
    phase: str = ""


@dataclass(frozen=True, slots=True)
class SwitchView:
    """A switch under way. ``began`` is wall time; ``estimated_s``: from the engines' last stops and
    starts, 0 when none are known. ``rolling_back``: why the layout before comes back, "" when not.
    ``queued``: the mode of a reload that waits for the end of this one. ``left_s``: of the estimate.
    """

    from_mode: str
    to_mode: str
    began: float
    estimated_s: float
    steps: tuple[Step, ...]
    rolling_back: str = ""
    queued: str = ""
    left_s: float = 0.0


class Ended(StrEnum):
    """What came of a reload."""

    IN_FORCE = "in_force"
    ROLLED_BACK = "rolled_back"  # the layout before is in force again
    SUPERSEDED = "superseded"  # it did not come up, and a newer file was there to follow
    FAILED = "failed"  # neither it nor the layout before came up whole


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """The last reload that has come to its end. ``loaded_at``: when its file was read (wall time): what
    tells one reload from another. ``ended`` is wall time. ``reason``: why it is not in force.
    """

    from_mode: str
    to_mode: str
    loaded_at: float
    ended: float
    took_s: float
    outcome: Ended
    reason: str = ""
