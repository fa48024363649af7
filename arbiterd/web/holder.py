"""Where the loop leaves the snapshot and the API finds it."""

from __future__ import annotations

import threading
import time

from arbiterd.model.published import Published
from arbiterd.report.counts import Counts

LATE_FACTOR = 12  # ticks without a finished one before /livez says no
LATE_MIN_S = 3.0


class Holder:
    """One slot, replaced whole; and the counts that a snapshot cannot carry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: Published | None = None
        self._counts = Counts()

    def put(self, published: Published) -> None:
        """Publish this tick."""
        with self._lock:
            self._published = published
            self._counts.add(published.decision.events)

    def get(self) -> Published | None:
        """The last finished tick, None before the first."""
        return self._published

    def counts(self) -> Counts:
        """What was counted since the start."""
        with self._lock:
            return self._counts.copy()

    def late_s(self) -> float:
        """How long the loop is overdue, 0 while it finishes its ticks in time."""
        published = self._published
        if published is None:
            return LATE_MIN_S
        age = time.monotonic() - published.loop.finished_at
        limit = max(LATE_MIN_S, LATE_FACTOR * published.loop.period_ms / 1000)
        return age if age > limit else 0.0
