"""Where the loop leaves the snapshot and the API finds it."""

from __future__ import annotations

import threading
import time

from arbiterd.model.published import Published

LATE_FACTOR = 12  # ticks without a finished one before /livez says no
LATE_MIN_S = 3.0


class Holder:
    """One slot, replaced whole; and the counts that a snapshot cannot carry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: Published | None = None
        self._events: dict[tuple[str, str], int] = {}

    def put(self, published: Published) -> None:
        """Publish this tick."""
        with self._lock:
            self._published = published
            for event in published.decision.events:
                key = (event.name.value, event.backend)
                self._events[key] = self._events.get(key, 0) + 1

    def get(self) -> Published | None:
        """The last finished tick, None before the first."""
        return self._published

    def events(self) -> dict[tuple[str, str], int]:
        """How often each event was told of each backend."""
        with self._lock:
            return dict(self._events)

    def late_s(self) -> float:
        """How long the loop is overdue, 0 while it finishes its ticks in time."""
        published = self._published
        if published is None:
            return LATE_MIN_S
        age = time.monotonic() - published.loop.finished_at
        limit = max(LATE_MIN_S, LATE_FACTOR * published.loop.period_ms / 1000)
        return age if age > limit else 0.0
