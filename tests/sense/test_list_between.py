"""A process list is taken between two readings of memory that agree."""

from __future__ import annotations

import pytest

from arbiterd.quantities import GIB
from arbiterd.sense import nvml_worker
from arbiterd.sense.nvml_looks import Looker
from arbiterd.sense.nvml_worker import LIST_TRIES, Row, Worker


class Card:
    """A card of 24 GiB; ``steps``: bytes that are taken right after each list is read."""

    def __init__(self, *steps: int) -> None:
        self.used, self.steps, self.lists = GIB, list(steps), 0

    def processes(self, _: object) -> Row:
        """One process holds everything."""
        found = {"processes": [[7, self.used]]}
        self.lists += 1
        self.used += self.steps.pop(0) if self.steps else 0
        return found

    def memory(self, _: object) -> Row:
        """(total, reserved, used, free)."""
        return {"memory": [24 * GIB, 0, self.used, 24 * GIB - self.used], "at": 1.0}


def _look(card: Card, monkeypatch: pytest.MonkeyPatch) -> Row:
    monkeypatch.setattr(nvml_worker, "_processes", card.processes)
    monkeypatch.setattr(nvml_worker, "_memory", card.memory)
    worker = Worker.__new__(Worker)
    worker._order = {"processes": True}
    worker._free, worker._limits, worker.suspicious = {}, {}, False
    worker.looker, worker._index = Looker(lambda _: None), 0
    row: Row = {"uuid": "GPU-a", "mig": False, **card.memory(None)}
    worker._look(None, row)
    return row


@pytest.mark.parametrize("size", [12 * GIB, -GIB // 2])
def test_what_moves_at_once_while_the_list_is_read_is_somebodys(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """An engine takes its cache between the two calls: read again, so that no byte is nobody's (a
    step of unattributed memory is critical at once) and none is counted twice.
    """
    card = Card(size)
    row = _look(card, monkeypatch)
    assert row["memory"][2] == row["processes"][0][1] == GIB + size
    assert card.lists == 2


def test_a_quiet_card_is_read_once_and_a_leak_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounded cost of it."""
    quiet = Card()
    _look(quiet, monkeypatch)
    assert quiet.lists == 1
    leak = Card(*[1 << 20] * 20)
    _look(leak, monkeypatch)
    assert leak.lists == LIST_TRIES
