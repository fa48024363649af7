"""Files of ours that cannot be written: one incident from the first to the last of them."""

from __future__ import annotations

from arbiterd.core.desk import Desk
from arbiterd.model.events import EventName, Severity


def judge_files(desk: Desk) -> None:
    """Open the incident with the first file that is behind, close it when none is."""
    behind = desk.seen.unwritten
    open_ = desk.open_incident("", "", EventName.STATE_UNWRITABLE)
    if behind and not open_:
        text = f"{behind[0]}; the daemon goes on without it and tries again"
        evidence = (("files", "; ".join(behind)),)
        desk.raise_incident(EventName.STATE_UNWRITABLE, Severity.ERROR, text, evidence=evidence)
    elif open_ and not behind:
        text = "every file of the daemon is written again"
        desk.close_incident(open_.id, EventName.RECOVERED, text)
