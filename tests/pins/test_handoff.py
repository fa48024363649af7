"""carry.json: every class by its name, a number for its format, and nothing that is read as something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arbiterd.core.backend.backend_axes import History, Sleep, Wish
from arbiterd.core.backend.backend_state import After, BackendState
from arbiterd.core.memory.device_state import Braked, DeviceState, Ladder, Sampled
from arbiterd.core.state import Carry
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.backend import Phase
from arbiterd.store.handoff import CarryStore
from arbiterd.store.handoff_formats import FORMAT
from tests.pins.handoff import FILE, lost, shape

ONE = BackendState(
    name="vllm",
    phase=Phase.BACKOFF,
    after=After.BACKOFF,
    wish=Wish(parked=True),
    history=History(failures=(1.0, 2.5), cause=Cause(CauseClass.DRIVER, "line", "summary")),
    sleep=Sleep(held={"GPU-0": 3}),
)
WHOLE = Carry(
    {"vllm": ONE},
    {
        "GPU-0": DeviceState(
            Sampled(windows={"vllm": ((1.0, 2),)}), Ladder(braked={"vllm": Braked()})
        )
    },
    times={"old": (None, 2.0)},
)


def written(folder: Path, carry: Carry = WHOLE) -> dict[str, Any]:
    """carry.json, as a daemon writes it."""
    store = CarryStore(folder)
    store.put(carry)
    found: dict[str, Any] = json.loads(store.path.read_text())
    return found


def read(folder: Path, row: dict[str, Any]) -> tuple[Carry | None, list[str]]:
    """What comes of this text, and what is told."""
    (folder / "carry.json").write_text(json.dumps(row))
    store = CarryStore(folder)
    return store.load(), store.problems


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Infinities, enumerations and absent values included; JSON as everybody reads it."""
    row = written(tmp_path)
    assert row["format"] == FORMAT
    assert row["carry"]["backends"]["vllm"]["$"] == "BackendState"
    json.dumps(row, allow_nan=False)
    assert read(tmp_path, row) == (WHOLE, [])


def test_a_record_is_never_read_as_one_that_looks_like_it(tmp_path: Path) -> None:
    """By its fields alone a Sleep without any would be Vitals, both have defaults for all."""
    row = written(tmp_path)
    row["carry"]["backends"]["vllm"]["vitals"] = {"$": "Sleep"}
    found, (problem,) = read(tmp_path, row)
    assert found is None
    assert "vitals" in problem
    assert problem.endswith("kept as carry.broken")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"format": "2"},
        {"format": None},
        {"carry": None},
        {"carry": {"$": "Switch"}},
        {"carry": {"$": "State", "run": "x"}},
        {"carry": {"$": "NoSuchClass"}},
        {"carry": {"$": "Carry", "backends": {"vllm": {"$": "BackendState", "name": "ollama"}}}},
        {"carry": {"$": "Carry", "backends": {"vllm": {"$": "BackendState"}}}},
    ],
)
def test_what_is_no_handoff_is_put_in_quarantine(tmp_path: Path, change: dict[str, Any]) -> None:
    """Told, and the daemon starts without it."""
    found, problems = read(tmp_path, {**written(tmp_path), **change})
    assert (found, len(problems)) == (None, 1)


def test_of_a_later_format_what_is_known_is_taken_and_the_rest_is_told(tmp_path: Path) -> None:
    """A downgrade: a parked engine stays parked."""
    row = written(tmp_path)
    row["format"] = FORMAT + 1
    row["carry"]["backends"]["vllm"]["mood"] = {"$": "Mood", "v": 3}
    found, problems = read(tmp_path, row)
    assert found == WHOLE
    assert [one.rpartition(": ")[2] for one in problems] == ["backends.vllm.mood"]


def test_another_boots_is_left_alone(tmp_path: Path) -> None:
    """Its times mean nothing any more."""
    assert read(tmp_path, {**written(tmp_path), "boot_id": "another"}) == (None, [])
    assert (tmp_path / "carry.json").exists()


# -- its shape -----------------------------------------------------------------------------------------
def test_records_change_with_the_number_of_their_format() -> None:
    """Mend it with ``python -m tests.pins.handoff``, which says when a migration is missing."""
    assert FILE.read_text() == shape()


def test_a_field_that_goes_or_must_be_there_needs_a_migration() -> None:
    """A new one with a default does not."""
    now = shape()
    assert lost(now, now.replace("Wish.parked: bool\n", "")) == ["Wish.parked: bool"]
    assert lost(now.replace("Wish.parked: bool\n", ""), now) == []
    assert lost(now.replace("BackendState.name: str (must be there)\n", ""), now) != []
