"""Notes become actions, events and incidents, in their order."""

from __future__ import annotations

import pytest

from arbiterd.core.incidents import found, reconcile
from arbiterd.core.limits import INCIDENTS_KEPT
from arbiterd.core.notes import About, Close, Heard, Note, Open, Order, Record, Remark, Say, trouble
from arbiterd.model.actions import Outcome, ThawBackend
from arbiterd.model.events import ActionRecord, Event, EventName, Incident, Severity

THAW = ThawBackend("act-1", "vllm", "GPU-0", "why")
EXIT = Open(trouble("vllm"), EventName.EXIT, Severity.ERROR, "vllm: gone", "vllm", "GPU-0")
DOOR = About((EventName.PORT_TAKEN,), mark=("door", "llm"))


def said(name: EventName, text: str) -> Event:
    """An event that stands alone."""
    return Event(name, Severity.INFO, text, backend="vllm")


def written(*notes: Note, before: tuple[Incident, ...] = ()) -> tuple[Incident, ...]:
    """The incidents after these notes."""
    return reconcile(notes, before, "inc-x-1-", 1e9)[0]


def test_an_incident_opens_once_and_its_notes_belong_to_it() -> None:
    """What is said about it and ordered for it carries its id; a second opening says something else."""
    again = Say(said(EventName.EXIT, "again"), trouble("vllm"))
    notes = (EXIT, Order(THAW, trouble("vllm"), 5), Open(*_of(EXIT), otherwise=again))
    incidents, actions, events = reconcile(notes, (), "inc-x-1-", 1e9)
    (one,) = incidents
    assert one.id == "inc-x-1-1"
    assert [(r.id, r.bytes_expected) for r in one.actions] == [("act-1", 5)]
    assert actions == (THAW,)
    assert [(e.message, e.incident) for e in events] == [("vllm: gone", one.id), ("again", one.id)]


def _of(note: Open) -> tuple[About, EventName, Severity, str, str, str]:
    return note.unless, note.name, note.severity, note.summary, note.backend, note.gpu


def test_what_belongs_to_nothing_stands_alone() -> None:
    """No incident is open: the event is logged without an id, the action ordered."""
    incidents, actions, events = reconcile(
        (Say(said(EventName.READY, "up"), trouble("vllm")), Order(THAW)), (), "inc-x-1-", 1e9
    )
    assert (incidents, actions, [e.incident for e in events]) == ((), (THAW,), [""])


@pytest.mark.parametrize("by", ["about", "id"])
def test_it_closes_once(by: str) -> None:
    """By what it is about or by its id; a second time nothing is said."""
    (one,) = written(EXIT)
    about = trouble("vllm") if by == "about" else one.id
    close = Close(about, EventName.RECOVERED, "well")
    incidents, _, events = reconcile((close, close), (one,), "inc-x-2-", 2e9)
    assert [i.closed_at for i in incidents] == [2e9]
    assert [(e.name, e.message, e.gpu) for e in events] == [(EventName.RECOVERED, "well", "GPU-0")]


def test_a_remark_is_made_once() -> None:
    """It is kept in the evidence; of the incident's own event it says nothing."""
    remark = Remark(trouble("vllm"), EventName.PORT_TAKEN, "bob has the port")
    own = Remark(trouble("vllm"), EventName.EXIT, "again")
    (one,) = written(EXIT, remark, remark, own, Remark(trouble("x"), EventName.STUCK, "no"))
    assert one.evidence == (("port_taken", "bob has the port"),)


@pytest.mark.parametrize(("ok", "text"), [(True, "done"), (False, "no answer")])
def test_an_outcome_is_written_where_its_action_is(ok: bool, text: str) -> None:
    """One whose action no incident holds changes nothing."""
    (one,) = written(
        EXIT, Order(THAW, trouble("vllm")), Heard(Outcome(THAW, ok, 5.0, 12.0, "no answer"))
    )
    assert [(r.outcome, r.took_ms) for r in one.actions] == [(text, 12.0)]
    assert written(Heard(Outcome(THAW, ok, 5.0, 12.0)), before=(one,)) != ()


def test_what_has_ended_is_written_into_the_incident_that_is_named() -> None:
    """Also once it is closed."""
    record = ActionRecord("act-2", "Reclaim trim", "qwen", "idle", 1.0)
    (one,) = written(EXIT, Close(trouble("vllm"), EventName.RECOVERED, "well"))
    (after,) = written(Record(one.id, record), Record("", record), before=(one,))
    assert after.actions == (record,)


def test_a_mark_tells_doors_apart() -> None:
    """One incident per door, though event, backend and device are the same."""
    opened = [
        Open(About((EventName.PORT_TAKEN,), mark=("door", door)), EventName.PORT_TAKEN,
             Severity.ERROR, door, evidence=(("door", door),))
        for door in ("llm", "vllm", "llm")
    ]  # fmt: skip
    incidents = written(*opened)
    assert [one.summary for one in incidents] == ["vllm", "llm"]
    llm = found(incidents, DOOR)
    assert llm is not None
    assert llm.id == "inc-x-1-1"


def test_the_oldest_closed_ones_are_forgotten() -> None:
    """The list is bounded; an open incident is never dropped."""
    old = tuple(
        Incident(
            f"inc-{n}",
            EventName.EXIT,
            Severity.ERROR,
            float(-n),
            "x",
            closed_at=None if n % 2 else 1.0,
        )
        for n in range(INCIDENTS_KEPT)
    )
    incidents = written(EXIT, before=old)
    assert len(incidents) == INCIDENTS_KEPT
    assert {one.id for one in old} - {one.id for one in incidents} == {f"inc-{INCIDENTS_KEPT - 2}"}
