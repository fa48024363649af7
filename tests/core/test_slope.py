"""Slopes at every rate: what a window tells depends on time, not on how often somebody looked."""

from __future__ import annotations

import pytest

from arbiterd.core.limits import SLOPE_GAP_S, SLOPE_SPAN_S, SLOPE_WINDOW_S, WINDOW_POINTS
from arbiterd.core.memory import slope
from arbiterd.quantities import GIB, MIB

POLLS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # what `poll` may be, seconds
RATES = (0.025, *POLLS)


def _ramp(every_s: float, mib_per_s: float, seconds: float) -> slope.Window:
    window: slope.Window = ()
    for n in range(round(seconds / every_s) + 1):
        at = n * every_s
        size = int(at * mib_per_s * MIB)
        window = slope.push(window, at, size, slope.gap_s(every_s))
    return window


@pytest.mark.parametrize("every_s", RATES)
@pytest.mark.parametrize("mib_per_s", [40, 192, 1024, 8192])
def test_a_ramp_has_its_slope_at_every_rate(every_s: float, mib_per_s: int) -> None:
    """Also when two samples are as far apart as `poll` allows."""
    window = _ramp(every_s, mib_per_s, max(6.0, 4 * every_s))
    assert slope.slope(window) == pytest.approx(mib_per_s * MIB, rel=0.02)
    assert slope.growing(window)


@pytest.mark.parametrize("every_s", RATES)
def test_a_slope_needs_time_not_samples(every_s: float) -> None:
    """A leak of 100 MiB/s that has lasted less than SLOPE_SPAN_S has none yet."""
    window = _ramp(every_s, 100, 30.0)
    young = tuple(one for one in window if one[0] > window[-1][0] - SLOPE_SPAN_S)
    assert slope.slope(young) is None


@pytest.mark.parametrize("every_s", RATES)
def test_a_window_holds_few_points_and_the_newest(every_s: float) -> None:
    """The last four as they came; never more than WINDOW_POINTS, over the whole window."""
    window = _ramp(every_s, 100, 60.0)
    assert len(window) <= WINDOW_POINTS
    newest = [at for at, _ in window[-3:]]
    assert newest == pytest.approx([60.0 - 2 * every_s, 60.0 - every_s, 60.0])
    span = window[-1][0] - window[0][0]
    assert span == pytest.approx(max(SLOPE_WINDOW_S, 2 * every_s), abs=max(0.3, every_s))


@pytest.mark.parametrize("every_s", RATES)
def test_one_step_is_no_growth_a_second_later(every_s: float) -> None:
    """A model was loaded and stays: nothing rises at the end of the window."""
    window: slope.Window = ()
    for n in range(round(max(3.0, 4 * every_s) / every_s)):
        at = n * every_s
        window = slope.push(window, at, 0 if n < 1 else GIB, slope.gap_s(every_s))
    assert not slope.growing(window)
    assert slope.slope(window) in (None, 0.0)


def test_the_hole_grows_with_poll() -> None:
    """One sample may fail; at the default a second is a hole."""
    assert slope.gap_s(0.25) == SLOPE_GAP_S
    assert all(slope.gap_s(poll) > 2 * poll for poll in POLLS)


def test_the_least_free_memory_of_the_window_is_kept() -> None:
    """A dip of 25 ms is found among 200 samples of five seconds, and forgotten after them."""
    window: slope.Window = ()
    for n in range(200):
        window = slope.push_lowest(window, n * 0.025, 7 if n == 101 else 100)
    assert min(size for _, size in window) == 7
    assert len(window) <= WINDOW_POINTS + 1
    for n in range(200, 420):
        window = slope.push_lowest(window, n * 0.025, 100)
    assert min(size for _, size in window) == 100
