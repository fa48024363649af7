"""What ``mode`` and ``reload --wait=done`` make of the daemon's words at the end of a switch."""

from __future__ import annotations

from arbiterd.cli.follow import end_of
from arbiterd.cli.show import Row

FIRST, SECOND = "2026-01-01T00:00:01.000+00:00", "2026-01-01T00:00:02.000+00:00"
ROLLED_BACK: Row = {
    "mode": "A",
    "switch": None,
    "config": {"sha256": "a", "loaded_at": FIRST},
    "last_switch": {"loaded_at": FIRST, "outcome": "rolled_back", "reason": "no", "took_s": 3.0},
}


def test_a_rollback_is_told_to_whoever_asked_for_what_failed() -> None:
    """With its reason."""
    end = end_of(ROLLED_BACK, {"loaded_at": FIRST, "sha256": "b", "mode": "B"}, 5.0)
    assert end is not None
    assert (end.outcome, end.mode, end.reason) == ("rolled_back", "A", "no")


def test_the_old_layout_asked_for_during_the_rollback_to_it_is_in_force() -> None:
    """The daemon tells of the rollback only, under the failed file's own time: no end was ever seen."""
    asked: Row = {"loaded_at": SECOND, "sha256": "a", "mode": "A"}
    taken: Row = {**ROLLED_BACK, "config": {"sha256": "a", "loaded_at": SECOND}}
    assert end_of(ROLLED_BACK, asked, 1.0) is None, "not taken yet"
    assert end_of({**taken, "switch": {"line": "rolling back"}}, asked, 1.0) is None
    end = end_of(taken, asked, 1.0)
    assert end is not None
    assert (end.outcome, end.mode, end.reason) == ("in_force", "A", "")
