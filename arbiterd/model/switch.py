"""A switch from one layout to another, as published."""

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
    """One backend of a switch. ``done``: it has come where it should be. ``doing``: its phase and why."""

    backend: str
    change: Change
    done: bool
    doing: str


@dataclass(frozen=True, slots=True)
class SwitchView:
    """A switch under way. ``began`` is wall time; ``estimated_s``: from the engines' last stops and
    starts, 0 when none are known. ``rolling_back``: why the layout before comes back, "" when not.
    ``queued``: the mode of a reload that waits for the end of this one.
    """

    from_mode: str
    to_mode: str
    began: float
    estimated_s: float
    steps: tuple[Step, ...]
    rolling_back: str = ""
    queued: str = ""
