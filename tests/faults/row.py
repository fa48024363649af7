"""A row of the table: one fault, how it is made and undone, and what is promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.stage import Stage

Inject = Callable[[Stage], Any]
Look = Callable[[Stage, Any], None]


def nothing(stage: Stage, made: Any) -> None:
    """No undo, or nothing to look at."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    ``stage``: "direct" (real processes under the direct launcher), "disk" (the same on small file
    systems of its own), "box" (a real systemd) or "hybrid" (the same with enforced limits).
    ``inject`` returns what the others need. ``seen`` waits for what must be observed while the fault
    lasts. ``undo`` ends a fault that lasts: its recovery counts from there, any other's from ``inject``.
    ``tells``: events of the journal, each at least once; "a|b": one of them. Empty: nothing happens,
    hence nothing is told. ``moves``: backends whose processes may be replaced; no other's may.
    ``within_s``: the recovery that is promised, seconds.
    """

    id: str
    kind: str
    stage: str
    inject: Inject
    promise: str
    seen: Look = nothing
    undo: Look = nothing
    tells: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()
    within_s: float = 60.0
    restarts_daemon: bool = False
    needs: str = ""  # a program or library without which the row is skipped, and says so

    @property
    def lasts(self) -> bool:
        """Whether it has to be undone."""
        return self.undo is not nothing


@dataclass(frozen=True, slots=True)
class Result:
    """How a row ended. ``seconds``: to service through every door; None where it never came."""

    id: str
    kind: str
    stage: str
    promise: str
    verdict: str  # ok | failed | skipped
    seconds: float | None
    why: str = ""
    took_s: float = 0.0
