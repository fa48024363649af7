"""The one owner of the settings in force: other threads post, the loop's thread changes and writes."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from arbiterd.config import Loaded
from arbiterd.core.mode import config_state
from arbiterd.core.mode.config_state import Changed, ConfigState
from arbiterd.model.decision import Decision
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.settings import Settings
from arbiterd.settings.history import ConfigFiles

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
class Refused:
    """A file that cannot be taken, and the events that say so."""

    problems: tuple[str, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class FileChanged:
    """The file as last looked at has this digest."""

    sha: str


Posted = Loaded | Refused | FileChanged


class SettingsOwner:
    """``post`` is for every thread, all else is the loop's. ``granted``: settings as they may be used."""

    def __init__(
        self, state: ConfigState, files: ConfigFiles, granted: Callable[[Settings], Settings]
    ) -> None:
        self.state = state
        self._files = files
        self._granted = granted
        self._posted: queue.SimpleQueue[Posted] = queue.SimpleQueue()

    def started(self, *, alive: bool) -> None:
        """The daemon starts. ``alive``: beside engines that run."""
        now = replace(self.state, disk=self._files.read())
        guards = bool(now.refused)
        self._keep(config_state.guarding(now) if guards else config_state.started(now, alive=alive))

    def post(self, what: Posted) -> None:
        """Heard before the next tick."""
        self._posted.put(what)

    def take(self) -> tuple[Event, ...]:
        """Before a tick: hear what was posted. Returns what the journal is told of it."""
        events: list[Event] = []
        for one in drained(self._posted):
            before = self.state
            if isinstance(one, Loaded):
                self._keep(config_state.accept(before, self._granted(one.settings), one.text))
                events.append(_accepted(before.newest, one.settings))
            elif isinstance(one, Refused):
                self.state = config_state.refuse(before, one.problems)
                events += one.events
            else:
                self.state = config_state.file_changed(before, one.sha)
                if self.state.told_sha != before.told_sha:
                    events.append(_pending(before.newest))
        self.state = config_state.take(self.state)
        return tuple(events)

    def after(self, decision: Decision, good: Settings | None, why: str) -> None:
        """After a tick: ``good`` came through last; ``why`` of a rollback."""
        under_way = decision.switch is not None
        back = decision.back_to
        self._keep(config_state.switch_ended(self.state, good, why, under_way=under_way, back=back))

    def _keep(self, changed: Changed) -> None:
        self.state, writes = changed
        self._files.apply(writes)


def _accepted(old: Settings, new: Settings) -> Event:
    if old.mode != new.mode:
        text = f"mode {old.mode} → {new.mode}; what is equal in both keeps running"
        return Event(EventName.MODE_SWITCH, Severity.NOTICE, text)
    return Event(
        EventName.RELOAD, Severity.NOTICE, f"{new.source.path} reloaded at {time.strftime('%T')}"
    )


def _pending(settings: Settings) -> Event:
    text = f"{settings.source.path} changed, not applied: systemctl reload gpu-arbiter"
    return Event(EventName.CONFIG_PENDING, Severity.NOTICE, text)
