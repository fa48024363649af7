"""The table of transitions: drawn as it is, checked where a phase changes, walked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.backend.phases import FIRST, TRANSITIONS, IllegalTransition, enter
from arbiterd.model.backend import Phase

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"
PAIRS = [(old, new) for old in Phase for new in Phase if old is not new]


def test_the_drawing_is_the_table() -> None:
    """Arrow by arrow, the first tick's as well."""
    drawn = re.findall(
        r"^    (\w+|\[\*\]) --> (\w+)", DOCS.read_text(encoding="utf-8"), re.MULTILINE
    )
    table = [(old.value, new.value) for old, all_ in TRANSITIONS.items() for new in all_]
    assert sorted(drawn) == sorted([*table, *(("[*]", phase.value) for phase in FIRST)])


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_only_what_the_table_names_is_entered(old: Phase, new: Phase) -> None:
    """Anything else is a defect, and says between which phases."""
    backend = BackendState("vllm", phase=old)
    if new in TRANSITIONS[old]:
        assert enter(backend, new, "why", 5.0, 1e9, first=False).phase is new
        return
    with pytest.raises(IllegalTransition, match=f"vllm: {old.value} -> {new.value}"):
        enter(backend, new, "why", 5.0, 1e9, first=False)


@pytest.mark.parametrize("phase", Phase)
def test_a_first_tick_takes_over_what_it_finds(phase: Phase) -> None:
    """A fresh record is stopped; never ready before it has been heard from."""
    fresh = BackendState("vllm")
    if phase in FIRST | TRANSITIONS[Phase.STOPPED] | {Phase.STOPPED}:
        assert enter(fresh, phase, "", 5.0, 1e9, first=True).phase is phase
        return
    with pytest.raises(IllegalTransition):
        enter(fresh, phase, "", 5.0, 1e9, first=True)


@given(st.data())
def test_every_walk_dates_its_steps_and_can_end_stopped(data: st.DataObject) -> None:
    """``since`` is the time of the last change, whatever is said in between; no phase is a trap."""
    backend, now = BackendState("vllm"), 0.0
    for _ in range(data.draw(st.integers(1, 30))):
        now += 1.0
        following = sorted(TRANSITIONS[backend.phase])
        new = data.draw(st.sampled_from([backend.phase, *following]))
        since = backend.since if new is backend.phase else now
        backend = enter(backend, new, f"at {now}", now, now + 1e9, first=False)
        assert (backend.phase, backend.reason, backend.since) == (new, f"at {now}", since)
    ways, reached = {backend.phase}, set[Phase]()
    while ways:
        reached.add(one := ways.pop())
        ways |= TRANSITIONS[one] - reached
    assert Phase.STOPPED in reached
