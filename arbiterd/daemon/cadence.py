"""How long the loop rests before its next tick, if nothing wakes it. Pure."""

from __future__ import annotations

from arbiterd.model.backend import Phase
from arbiterd.model.decision import Decision

SOON_S = 0.025


def rest_s(before: Decision | None, now: Decision, poll_s: float) -> float:
    """Seconds: ``poll_s``, and SOON_S where a backend has just begun to wait for its turn. Its start is
    the next tick's, and nothing else would wake the loop for that.
    """
    waited = {n for n, one in before.backends.items() if _waits(one.phase)} if before else set()
    begun = {n for n, one in now.backends.items() if _waits(one.phase)} - waited
    return min(poll_s, SOON_S) if begun else poll_s


def _waits(phase: Phase) -> bool:
    return phase is Phase.WAITING
