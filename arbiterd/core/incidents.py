"""Notes become actions, events and incidents: the only place that opens, changes or closes an incident."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from arbiterd.core.limits import AGAIN_WINDOW_S, CALM_MAX_S, CALM_S, INCIDENTS_KEPT
from arbiterd.core.notes import About, Close, Heard, Note, Notes, Open, Order, Record, Remark, Say
from arbiterd.model.actions import Action
from arbiterd.model.events import ActionRecord, Event, EventName, Incident, Severity

Change: TypeAlias = Callable[[Incident], Incident]


def reconcile(
    notes: Notes, incidents: tuple[Incident, ...], prefix: str, wall: float
) -> tuple[tuple[Incident, ...], tuple[Action, ...], tuple[Event, ...]]:
    """(incidents, newest first; actions; events). ``prefix``: of this tick's ids. ``wall``: epoch, s."""
    books = _Books(incidents, prefix, wall)
    for note in notes:
        books.write(note)
    return tuple(books.incidents), tuple(books.actions), tuple(books.events)


def found(incidents: Sequence[Incident], about: About) -> Incident | None:
    """The newest open one."""
    for one in incidents:
        if one.closed_at is not None or one.event not in about.events:
            continue
        here = one.backend == about.backend and about.gpu in (None, one.gpu)
        if here and (about.mark is None or about.mark in one.evidence):
            return one
    return None


def dwell_s(incidents: Sequence[Incident], event: EventName, gpu: str, wall: float) -> float:
    """For how long what this event is about must be over: twice as long each time it came back lately by
    itself, so that a cause which comes and goes is one incident; what was done against it is no such story.
    ``wall``: epoch, s.
    """
    times = sum(
        one.event is event
        and one.gpu == gpu
        and not one.actions
        and wall - one.opened_at < AGAIN_WINDOW_S
        for one in incidents
    )
    return min(CALM_MAX_S, CALM_S * 2.0 ** min(16, max(0, times - 1)))


class _Books:
    """The incidents while the notes of one stage are written into them."""

    def __init__(self, incidents: Sequence[Incident], prefix: str, wall: float) -> None:
        self.incidents = list(incidents)
        self.actions: list[Action] = []
        self.events: list[Event] = []
        self._prefix = prefix
        self._wall = wall

    def write(self, note: Note) -> None:
        """One note."""
        match note:
            case Say(event, about):
                self.events.append(replace(event, incident=self._id(about)) if about else event)
            case Order():
                self._order(note)
            case Open():
                self._open(note)
            case Remark():
                self._remark(note)
            case Close(about, name, message):
                one = self._open_one(about)
                if one is not None:
                    self._put(replace(one, closed_at=self._wall))
                    self._tell(one, name, Severity.NOTICE, message)
            case Heard():
                self._heard(note)
            case Record(incident, record):
                self._edit(incident, lambda old: replace(old, actions=(*old.actions, record)))

    def _open_one(self, about: About | str) -> Incident | None:
        if isinstance(about, About):
            return found(self.incidents, about)
        return next((i for i in self.incidents if i.id == about and i.closed_at is None), None)

    def _id(self, about: About | str | None) -> str:
        if about is None or isinstance(about, str):
            return about or ""
        one = found(self.incidents, about)
        return one.id if one else ""

    def _order(self, note: Order) -> None:
        action = note.action
        self.actions.append(action)
        record = ActionRecord(
            id=action.id,
            action=type(action).__name__,
            target=action.backend,
            reason=action.reason,
            started_at=self._wall,
            bytes_expected=note.bytes_expected,
        )
        self._edit(self._id(note.about), lambda old: replace(old, actions=(*old.actions, record)))

    def _open(self, note: Open) -> None:
        if found(self.incidents, note.unless) is not None:
            if note.otherwise is not None:
                self.write(note.otherwise)
            return
        number = 1 + sum(one.id.startswith(self._prefix) for one in self.incidents)
        incident = Incident(
            id=f"{self._prefix}{number}",
            event=note.name,
            severity=note.severity,
            opened_at=self._wall,
            summary=note.summary,
            backend=note.backend,
            gpu=note.gpu,
            pids=note.pids,
            evidence=note.evidence,
        )
        self.incidents.insert(0, incident)
        self._trim()
        self._tell(incident, note.name, note.severity, note.summary)

    def _remark(self, note: Remark) -> None:
        one = found(self.incidents, note.about)
        said = one is None or one.event is note.name
        if one is None or said or any(key == note.name.value for key, _ in one.evidence):
            return
        row = (note.name.value, note.message)
        self._edit(one.id, lambda old: replace(old, evidence=(*old.evidence, row)))
        self._tell(one, note.name, Severity.WARNING, note.message)

    def _heard(self, note: Heard) -> None:
        outcome = note.outcome
        text = "done" if outcome.ok else outcome.detail
        for one in self.incidents:
            if any(record.id == outcome.action.id for record in one.actions):
                records = tuple(
                    replace(r, took_ms=outcome.took_ms, outcome=text)
                    if r.id == outcome.action.id
                    else r
                    for r in one.actions
                )
                self._put(replace(one, actions=records))
                return

    def _tell(self, one: Incident, name: EventName, severity: Severity, message: str) -> None:
        self.events.append(
            Event(name, severity, message, incident=one.id, backend=one.backend, gpu=one.gpu)
        )

    def _put(self, one: Incident) -> None:
        self.incidents = [one if i.id == one.id else i for i in self.incidents]

    def _edit(self, incident_id: str, change: Change) -> None:
        if incident_id:
            self.incidents = [change(i) if i.id == incident_id else i for i in self.incidents]

    def _trim(self) -> None:
        """Bound the list; an open incident is never dropped."""
        extra = len(self.incidents) - INCIDENTS_KEPT
        if extra > 0:
            closed = [i for i in self.incidents if i.closed_at is not None][-extra:]
            drop = {i.id for i in closed}
            self.incidents = [i for i in self.incidents if i.id not in drop]
