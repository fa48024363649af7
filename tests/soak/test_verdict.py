"""The verdict of a soak: what counts as growing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.soak.sampling import Sample
from tests.soak.verdict import Trend, kendall_z, sen, table, trends

EVERY_S, WARM_UP_S = 5.0, 600.0
LEVEL = 80_000.0


def _series(value: Callable[[float], float], minutes: int = 60) -> Trend:
    """One hour of a daemon's RSS (KiB) as a function of the minute."""
    samples = [
        Sample(n * EVERY_S, {("daemon", "RSS KiB"): value(n * EVERY_S / 60)}, {})
        for n in range(int(minutes * 60 / EVERY_S))
    ]
    (found,) = trends(samples, WARM_UP_S)
    return found


def test_a_flat_series_does_not_grow() -> None:
    """Equal values: no slope, no significance."""
    found = _series(lambda _minute: LEVEL)
    assert (found.slope, found.z, found.grows) == (0.0, 0.0, False)


@pytest.mark.parametrize(
    ("mib_an_hour", "grows"), [(1, False), (2, True), (12, True), (-12, False)]
)
def test_a_steady_slope_grows_beyond_the_bound(mib_an_hour: int, *, grows: bool) -> None:
    """Two percent of 80,000 KiB are 1.6 MiB; the slope is told per hour."""
    found = _series(lambda minute: LEVEL + mib_an_hour * 1024 * minute / 60)
    assert found.slope == pytest.approx(mib_an_hour * 1024, rel=0.01)
    assert found.grows is grows


def test_noise_does_not_grow_and_hides_no_growth() -> None:
    """Two MiB up and down, with and without a slope below it."""
    noise = random.Random(3)
    assert not _series(lambda _minute: LEVEL + noise.uniform(-2048, 2048)).grows
    assert _series(
        lambda minute: LEVEL + 12 * 1024 * minute / 60 + noise.uniform(-2048, 2048)
    ).grows


def test_peaks_do_not_grow() -> None:
    """A fault's 20 MiB for two samples each five minutes, more of them towards the end: medians stay."""
    found = _series(
        lambda minute: LEVEL + (20_480 if minute % (8 - minute / 10) < EVERY_S / 30 else 0)
    )
    assert not found.grows
    assert found.most == LEVEL + 20_480


def test_one_step_is_no_steady_growth() -> None:
    """A level that is reached once: the median of all slopes is 0."""
    assert not _series(lambda minute: LEVEL + (4096 if minute > 15 else 0)).grows


def test_the_warm_up_is_left_out() -> None:
    """20 MiB in the first ten minutes, then flat: neither slope nor first fifth knows of them."""
    found = _series(lambda minute: LEVEL + 2048 * min(minute, 10))
    assert not found.grows
    assert found.first == LEVEL + 20_480
    assert _series(lambda minute: LEVEL + 2048 * min(minute, 60)).grows


@pytest.mark.parametrize("whole", [True, False])
def test_a_process_started_anew_is_warm_after_five_minutes(*, whole: bool) -> None:
    """Each of its lives begins 9 MiB higher than it ends, later ones are shorter; a reload, which leaves the
    master, is no new life.
    """
    lives = [600, 2400, 3200, 3500]  # when it was started, seconds
    samples = []
    for n in range(int(3600 / EVERY_S)):
        at = n * EVERY_S
        born = max((one for one in lives if one <= at), default=0)
        rss = LEVEL + 9216 * max(0.0, 1 - (at - born) / 300)
        pids = (born,) if whole else (1, born)
        samples.append(Sample(at, {("gate", "RSS KiB"): rss}, {"gate": pids}))
    (found,) = trends(samples, WARM_UP_S)
    assert (found.most == LEVEL) is whole
    assert not found.grows


def test_few_points_decide_nothing() -> None:
    """No point, one, and three: no slope, or one that is not significant."""
    assert sen([]) == sen([(0.0, 1.0)]) == 0.0
    assert kendall_z([1.0, 2.0, 3.0]) == 0.0
    assert not _series(lambda minute: LEVEL + 9e5 * minute, minutes=13).grows


def test_the_table_names_what_grows() -> None:
    """One row per series, with its verdict."""
    rows = table([_series(lambda minute: LEVEL + 200 * minute)]).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| daemon | RSS KiB | ")
    assert rows[2].endswith("| **grows** |")
