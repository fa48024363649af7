"""Where the loop leaves the snapshot and the API finds it."""

from __future__ import annotations

import threading
import time

from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.published import Published
from arbiterd.report.metrics.counters import Counts

LATE_FACTOR = 12  # ticks without a finished one before /livez says no
LATE_MIN_S = 3.0
HOSTS_MAX = 20  # a scanner's inventions are not worth more


class Holder:
    """One slot, replaced whole; and the counts that a snapshot cannot carry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: Published | None = None
        self._counts = Counts()
        self._hosts: dict[str, bool] = {}  # whether it has been told

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

    def heard(self, host: str) -> None:
        """A program was answered by this name, which is none of ours."""
        with self._lock:
            if host in self._hosts or len(self._hosts) < HOSTS_MAX:
                self._hosts.setdefault(host, False)

    def said(self) -> tuple[Event, ...]:
        """Each such name once, with the line that makes it known."""
        published = self._published
        if published is None or all(self._hosts.values()):
            return ()
        with self._lock:
            new = [host for host, told in self._hosts.items() if not told]
            self._hosts.update(dict.fromkeys(new, True))
        known = published.settings.gateway.hosts
        return tuple(_unknown(host, known) for host in sorted(new))

    def late_s(self) -> float:
        """How long the loop is overdue, 0 while it finishes its ticks in time."""
        published = self._published
        if published is None:
            return LATE_MIN_S
        age = time.monotonic() - published.loop.finished_at
        limit = max(LATE_MIN_S, LATE_FACTOR * published.loop.period_ms / 1000)
        return age if age > limit else 0.0


def _unknown(host: str, known: tuple[str, ...]) -> Event:
    hosts = ", ".join(f'"{one}"' for one in (*known, host))
    text = (
        f"API: served a request for the unknown host {host}; browsers get 403 for it; "
        f"to allow it, write: [gateway] hosts = [{hosts}]"
    )
    return Event(EventName.UNKNOWN_HOST, Severity.NOTICE, text)
