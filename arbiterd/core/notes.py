"""What a stage says and orders, as data; core/incidents.py makes actions, events and incidents of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from arbiterd.model.actions import Action, Outcome
from arbiterd.model.events import ActionRecord, Event, EventName, Severity


@dataclass(frozen=True, slots=True)
class About:
    """The open incident of one of these events about a backend ("": about none) and a device (None: any).
    ``mark``: a row of evidence that it has.
    """

    events: tuple[EventName, ...]
    backend: str = ""
    gpu: str | None = None
    mark: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """Log an event. ``about``: the incident that it belongs to, or its id; without one it stands alone."""

    event: Event
    about: About | str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Have an action carried out, noted in an incident."""

    action: Action
    about: About | str | None = None
    bytes_expected: int | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """Log, once per incident, what holds up its end; kept in its evidence."""

    about: About
    name: EventName
    message: str


@dataclass(frozen=True, slots=True)
class Open:
    """Open an incident and log it, unless one is open already: then ``otherwise``, if anything."""

    unless: About
    name: EventName
    severity: Severity
    summary: str
    backend: str = ""
    gpu: str = ""
    pids: tuple[int, ...] = ()
    evidence: tuple[tuple[str, str], ...] = ()
    otherwise: Say | Remark | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Close an incident, also by its id, if it is open, and log how."""

    about: About | str
    name: EventName
    message: str


@dataclass(frozen=True, slots=True)
class Heard:
    """Write an outcome into whichever incident holds its action."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Record:
    """Write something that has ended into an incident."""

    incident: str
    record: ActionRecord


Note: TypeAlias = Say | Order | Remark | Open | Close | Heard | Record
Notes: TypeAlias = tuple[Note, ...]


# One incident from the first sign to recovery, whatever it turns out to be.
TROUBLE = (
    EventName.EXIT,
    EventName.OOM,
    EventName.STUCK,
    EventName.UNHEALTHY,
    EventName.CRASH_LOOP,
    EventName.BLOCKED_START,
    EventName.PORT_TAKEN,
    EventName.LEAK,
)


def trouble(backend: str) -> About:
    """The incident of a backend that does not run as it should."""
    return About(TROUBLE, backend)
