"""Looks between orders: how far apart, and which of them are told."""

from __future__ import annotations

import pytest

from arbiterd.quantities import GIB, MIB
from arbiterd.sense.looks import (
    COST_SHARE,
    FILL_BYTES_S,
    LONGEST_S,
    QUIET_S,
    SHORTEST_S,
    Card,
    affordable_s,
    next_look_s,
)

LINE = 256 * MIB


def _told(
    card: Card, frees: list[int], every_s: float = SHORTEST_S, start: float = 10.0
) -> list[float]:
    """Seconds since the start at which these looks are told, as the worker tells them."""
    out = []
    for n, free in enumerate(frees):
        at = start + n * every_s
        if card.look(free, at, LINE):
            card.tell(free, at)
            out.append(n * every_s)
    return out


@pytest.mark.parametrize(
    ("free", "fastest", "seconds"),
    [
        (80 * GIB, FILL_BYTES_S, LONGEST_S),
        (LINE + 20 * GIB, 100 * GIB, 0.1),
        (LINE + 2 * GIB, 8 * GIB, 0.125),
        (LINE + 64 * MIB, FILL_BYTES_S, SHORTEST_S),
        (LINE, 8 * GIB, SHORTEST_S),
        (0, 8 * GIB, SHORTEST_S),
    ],
)
def test_the_next_look_comes_in_half_the_time_to_the_line(
    free: int, fastest: float, seconds: float
) -> None:
    """Within 25 and 250 ms."""
    assert next_look_s(free, LINE, fastest) == pytest.approx(seconds)


def test_looks_that_cost_more_come_less_often() -> None:
    """A share of a core, and never less than four a second."""
    assert affordable_s(100e-6) == pytest.approx(100e-6 / COST_SHARE)
    assert affordable_s(1.0) == LONGEST_S


def test_the_fastest_fill_is_remembered_and_fades() -> None:
    """30 GiB within a tenth of a second; ten minutes later half of what is above the least counts."""
    card = Card.of(60 * GIB, 0.0)
    card.look(30 * GIB, 0.1, LINE)
    assert card.fastest == pytest.approx(300 * GIB)
    card.look(30 * GIB, 600.1, LINE)
    assert card.fastest == pytest.approx(150 * GIB)
    card.look(30 * GIB, 6000.0, LINE)
    assert card.fastest == FILL_BYTES_S


def test_a_move_is_told_at_once_and_stillness_never() -> None:
    """More than 64 MiB since it was told, however slowly it came."""
    assert _told(Card.of(8 * GIB, 0.0), [8 * GIB] * 400) == []
    slow = [8 * GIB - n * MIB for n in range(130)]
    assert len(_told(Card.of(8 * GIB, 0.0), slow)) == 1
    assert _told(Card.of(8 * GIB, 0.0), [8 * GIB, 6 * GIB]) == [SHORTEST_S]
    assert _told(Card.of(6 * GIB, 0.0), [6 * GIB, 8 * GIB]) == [SHORTEST_S]


def test_a_small_step_over_the_line_is_told() -> None:
    """Once, while it stays there."""
    card = Card.of(LINE + 8 * MIB, 0.0)
    assert _told(card, [LINE - MIB] * 30) == [0.0]


def test_a_ramp_is_told_with_each_look() -> None:
    """8 GiB/s: every look is a new low."""
    ramp = [8 * GIB - n * 205 * MIB for n in range(30)]
    assert len(_told(Card.of(8 * GIB, 0.0), ramp)) == 29


@pytest.mark.parametrize("bottom", [4 * GIB, LINE - 8 * MIB])
def test_a_guest_that_allocates_and_frees_in_each_step_spins_nothing(bottom: int) -> None:
    """At 20 steps a second its moves, and its crossings of the line, are told at most as often as the
    loop looks anyway, and once a second as a low.
    """
    steps = [8 * GIB if n // 2 % 2 else bottom for n in range(400)]  # ten seconds
    told = _told(Card.of(8 * GIB, 0.0), steps)
    assert 10 <= len(told) <= 10 / QUIET_S + 11
