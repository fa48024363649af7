"""Which accepted settings are in force: a newer file waits for the end of the switch under way."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TypeVar

from arbiterd.core.diff import same
from arbiterd.model.decision import Decision
from arbiterd.model.settings import Settings

T = TypeVar("T")


def drained(source: queue.SimpleQueue[T]) -> list[T]:
    """All that waits in a queue, oldest first."""
    out: list[T] = []
    while True:
        try:
            out.append(source.get_nowait())
        except queue.Empty:
            return out


@dataclass(frozen=True, slots=True)
class Ending:
    """A switch has ended: ``settings`` have come through, or come back because ``failed`` did not."""

    settings: Settings
    failed: Settings | None = None


class Intake:
    """``settings``: in force. ``queued``: accepted, and waiting; of several the latest wins."""

    def __init__(self, settings: Settings, *, unfinished: bool) -> None:
        self.settings = settings
        self.queued: Settings | None = None
        # until the first tick has looked: what the daemon before us had begun is to be ended
        self._switching = unfinished
        self._taken = False

    def take(self, newer: Settings | None) -> None:
        """Before a tick: what came in since the last one."""
        if newer is not None and self._switching and same(newer, self.settings):
            self.settings, self.queued = newer, None  # it is what the switch goes to
        elif newer is not None:
            self.queued = newer
        if self.queued is not None and not self._switching:
            self.settings, self.queued = self.queued, None
            self._taken = True

    def after(self, decision: Decision, good: Settings | None) -> Ending | None:
        """After a tick. ``good``: the last that came through."""
        ending: Ending | None = None
        back = decision.back_to
        if back is not None:
            ending = Ending(back, failed=self.settings)
            self.settings = back
        elif (self._switching or self._taken) and decision.switch is None:
            through = good is not None and same(good, self.settings)
            # what failed while a newer file waits has not come through: the way back stays
            if through or self.queued is None:
                ending = Ending(self.settings)
        self._switching, self._taken = decision.switch is not None, back is not None
        return ending
