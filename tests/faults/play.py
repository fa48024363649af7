"""Playing rows on one stage after another: fault, closing check, the next; a stage that a fault has
left in disorder is thrown away.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from tests.faults.closing import SETTLE_S, Before, calm, look, service_back
from tests.faults.row import Fault, Result
from tests.faults.stage import Missing, Size, Stage, until

Make = Callable[[], Stage]
# Promised seconds are those of a machine of its own; a shared one is told by FAULTS_SLACK.
SLACK = float(os.environ.get("FAULTS_SLACK", "1"))
_GIVE_UP_S = 120.0


def play(rows: Sequence[Fault], make: Make, *, settle_s: float = SETTLE_S) -> Iterator[Result]:
    """Each row's result, in order. ``settle_s``: from service to calm."""
    stage: Stage | None = None
    size: Size | None = None
    try:
        for row in rows:
            began = time.monotonic()
            try:
                if stage is None:
                    stage = make()
                    service_back(stage, time.monotonic(), _GIVE_UP_S)
                    until(lambda s=stage: not s.status()["incidents_open"], "a calm start")  # type: ignore[misc]
                    calm(stage, look(stage), (), ())
                    size = stage.size(stage.daemon_pid())
                seconds = _one(row, stage, size, settle_s)
                slow = seconds > row.within_s * SLACK
                why = f"{seconds:.1f} s instead of {row.within_s:g} s" if slow else ""
                verdict = "failed" if slow else "ok"
            except Exception as error:  # a fault of the harness is a failure of its row
                short = str(error) if isinstance(error, Missing) else traceback.format_exc()
                seconds, verdict, why = None, "failed", short[-1800:]
                if stage is not None:
                    stage.close()
                    stage = None
            took = time.monotonic() - began
            yield Result(row.id, row.kind, row.stage, row.promise, verdict,
                         None if seconds is None else round(seconds, 2), why, round(took, 1))  # fmt: skip
    finally:
        if stage is not None:
            stage.close()


def _one(row: Fault, stage: Stage, size: Size | None, settle_s: float) -> float:
    """The fault, its end, the check. Returns the seconds to service."""
    for (
        name
    ) in row.moves:  # rows do not add up to a crash loop: an operator's resume forgives the past
        stage.order(name, "resume")
    before: Before = look(stage, size)
    stage.began = before.mark
    since = time.monotonic()
    made = row.inject(stage)
    try:
        row.seen(stage, made)
    finally:
        if row.lasts:
            row.undo(stage, made)
            since = time.monotonic()
    if row.restarts_daemon:
        stage.revive()
    found = service_back(stage, since, max(row.within_s * SLACK, _GIVE_UP_S))
    calm(stage, before, row.moves, row.tells, settle_s)
    return found
