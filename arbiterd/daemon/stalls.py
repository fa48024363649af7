"""Times when the loop itself did not run: stopped, starved of CPU, or on a machine that was suspended.

Nobody answers to a daemon that does not listen: what is late in such a time is the daemon's own fault.
So the gap between two ticks is looked at before anything else is called hung.
"""

from __future__ import annotations

from arbiterd.model.events import Event, EventName, Severity

STALL_S = 1.0  # beyond the poll; a reading is late after as much (sense/nvml.py)
_SAY_EVERY_S = 30.0


class Stalls:
    """Since the start: ``count`` and ``seconds`` of stalls; ``late_s``, by how much ticks came late,
    and ``missed``, how many of them a whole poll or more.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.late_s = 0.0
        self.missed = 0
        self._before: float | None = None
        self._said_at = -_SAY_EVERY_S
        self._unsaid: list[float] = []

    def look(self, began: float, poll_s: float) -> float:
        """A tick begins at ``began`` (monotonic). How long the loop was held up before it, 0 for not."""
        before, self._before = self._before, began
        gap = 0.0 if before is None else began - before - poll_s
        self.late_s += max(0.0, gap)
        self.missed += gap >= poll_s
        if gap < STALL_S:
            return 0.0
        self.count += 1
        self.seconds += gap
        self._unsaid.append(gap)
        return gap

    def said(self, now: float) -> tuple[Event, ...]:
        """What is to be told of it, at most every 30 s."""
        if not self._unsaid or now - self._said_at < _SAY_EVERY_S:
            return ()
        gaps, self._unsaid, self._said_at = self._unsaid, [], now
        times = "" if len(gaps) == 1 else f" in {len(gaps)} gaps"
        text = (
            f"the control loop was held up for {sum(gaps):.1f} s{times}: stopped, starved of CPU, or the "
            "machine was suspended; what was late in that time is held against no GPU and no engine"
        )
        took_ms = sum(gaps) * 1000
        return (Event(EventName.LOOP_STALLED, Severity.WARNING, text, took_ms=took_ms),)
