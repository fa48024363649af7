"""Files of ours that cannot be written: one incident from the first to the last of them."""

from __future__ import annotations

from arbiterd.core.facts import Facts
from arbiterd.core.notes import About, Close, Notes
from arbiterd.model.events import EventName, Severity


def judge_files(facts: Facts) -> Notes:
    """An incident from the first file that is behind until none is."""
    behind, about = facts.seen.unwritten, About((EventName.STATE_UNWRITABLE,))
    if not behind:
        text = "every file of the daemon is written again"
        return (Close(about, EventName.RECOVERED, text),)
    text = f"{behind[0]}; the daemon goes on without it and tries again"
    evidence = (("files", "; ".join(behind)),)
    return (facts.open(EventName.STATE_UNWRITABLE, Severity.ERROR, text, about, evidence=evidence),)
