"""The pinned hour: core decides on it as it did (hour.py says what is in it and how it is written anew)."""

from __future__ import annotations

import gzip

import pytest

from tests.pins import hour

ACTIONS = {
    "StartBackend", "StopBackend", "KillProcesses", "LoadModel", "UnloadModel", "SleepBackend", "WakeBackend",
    "FreezeBackend",
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> list[str]:
    """What is decided by the file: the one test that replays costs 3 CPU seconds."""
    return hour.DECISIONS.read_text(encoding="utf-8").splitlines()


def test_every_tick_of_the_hour_is_decided_as_before() -> None:
    """Actions, events, doors, placements, bands, brakes, reclaims, incidents, switches, learned caps, probes."""
    problem = hour.compared(hour.written(hour.replayed()))
    assert not problem, (
        f"{problem}\nmeant? python -m tests.pins.hour says how the pin is written anew"
    )


def test_a_difference_names_its_tick_and_the_facts(found: list[str]) -> None:
    """One fact less, one other, and an hour that ends early."""
    at = next(n for n, row in enumerate(found) if row.startswith("! do StopBackend"))
    tick = next(row for row in reversed(found[:at]) if row.startswith("tick "))
    less = hour.compared([*found[:at], *found[at + 1 :]])
    assert less == f"{tick}\n  no longer: {found[at]}"
    other = hour.compared([*found[:at], found[at] + "9", *found[at + 1 :]])
    assert other == f"{tick}\n  no longer: {found[at]}\n  new:       {found[at]}9"
    assert hour.compared(found[:-1]).startswith(f"expected: {found[-1]}, found: the end")


def test_the_order_within_a_tick_does_not_matter(found: list[str]) -> None:
    """A set: stages may order what they like."""
    at = next(n for n, row in enumerate(found) if row[:2] == found[n + 1][:2] == "! ")
    swapped = [*found[:at], found[at + 1], found[at], *found[at + 2 :]]
    assert hour.compared(swapped) == ""


def test_the_hour_has_everything_that_the_policy_may_do(found: list[str]) -> None:
    """Every kind of action that the world can carry out, a restart of the daemon, every layout."""
    text = gzip.decompress(hour.OBSERVATIONS.read_bytes()).decode()
    assert {row.split()[2] for row in found if row.startswith("! do ")} == ACTIONS
    assert text.count('"restart":true') >= 5
    assert {row.split()[3] for row in found if row.startswith("+ switch ")} == {"A", "B", "C"}
    seconds = float(next(row for row in reversed(found) if row.startswith("tick ")).split()[3])
    assert 3500 < seconds <= 3600


def test_no_state_of_core_is_in_it() -> None:
    """So that core's records may be cut anew."""
    text = gzip.decompress(hour.OBSERVATIONS.read_bytes()).decode()
    assert 'State"' not in text.replace('"$":"GpuState"', "").replace('"$":"UnitState"', "")
    assert hour.OBSERVATIONS.stat().st_size < 800_000
