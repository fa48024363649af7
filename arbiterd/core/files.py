"""Files of ours that cannot be written: one incident from the first to the last of them."""

from __future__ import annotations

from arbiterd.core.facts import Facts
from arbiterd.core.notes import About, Open
from arbiterd.model.events import EventName, Incident, Severity


def wrong(facts: Facts) -> tuple[Open, ...]:
    """With the first file that is behind."""
    behind, name = facts.seen.unwritten, EventName.STATE_UNWRITABLE
    if not behind:
        return ()
    text = f"{behind[0]}; the daemon goes on without it and tries again"
    evidence = (("files", "; ".join(behind)),)
    return (facts.open(name, Severity.ERROR, text, About((name,)), evidence=evidence),)


def over(facts: Facts, _: Incident) -> tuple[EventName, str] | None:
    """None is behind."""
    if facts.seen.unwritten:
        return None
    return EventName.RECOVERED, "every file of the daemon is written again"
