"""Flat, or what grows: a robust slope of every series against a stated bound. Pure.

The slope is Theil and Sen's (the median of the slopes of all pairs of points), of one median per minute,
so that neither a fault's peak nor a process restarted in between decides. A series grows when its slope is
over the bound AND Kendall's test finds the trend significant (z over 2.33, one in a hundred by chance):
a slope alone is also what noise gives.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from tests.soak.sampling import Sample

SIGNIFICANT_Z = 2.33
YOUNG_S = 300.0
# What an hour may add: (at least, or this share of the median). An hour of a daemon that runs for months:
# anything real is over it after the first night.
BOUNDS: dict[str, tuple[float, float]] = {
    "RSS KiB": (1024, 0.02),
    "anonymous KiB": (1024, 0.02),  # its own; PSS grows when others end that share its files' pages
    "descriptors": (2, 0.0),
    "threads": (1, 0.0),
    "processes": (0.5, 0.0),
    "tick late, mean ms": (5, 0.0),
    "tick late, max ms": (50, 0.5),
    "API answer, median ms": (5, 0.5),
    "files": (5, 0.1),
    "KiB on disk": (1024, 0.1),
}


@dataclass(frozen=True, slots=True)
class Trend:
    """Of one series. ``slope``: per hour; ``first``, ``last``: medians of the first and last fifth."""

    who: str
    what: str
    first: float
    last: float
    most: float
    slope: float
    bound: float
    z: float

    @property
    def grows(self) -> bool:
        """Whether the verdict is that it leaks."""
        return self.slope > self.bound and self.z > SIGNIFICANT_Z


def sen(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's slope, per unit of x; 0 for fewer than two points."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] != a[0]]
    return statistics.median(slopes) if slopes else 0.0


def kendall_z(values: Sequence[float]) -> float:
    """How sure a rise is: Mann and Kendall's z, ties counted; 0 where there is nothing to tell."""
    n = len(values)
    if n < 4:
        return 0.0
    score = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in (values.count(v) for v in set(values)))
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    return (score - (score > 0) + (score < 0)) / math.sqrt(variance) if variance > 0 else 0.0


def trends(samples: Iterable[Sample], warm_up_s: float) -> tuple[Trend, ...]:
    """Of every series, the first ``warm_up_s`` seconds left out, and as many of a process that was killed and
    started anew, at most YOUNG_S.
    """
    minutes: dict[tuple[str, str], dict[int, list[float]]] = {}
    born: dict[str, float] = {}
    before: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        for who, pids in sample.pids.items():
            if pids and before.get(who) and not set(pids) & set(before[who]):
                born[who] = sample.at
        before |= {who: pids for who, pids in sample.pids.items() if pids}
        if sample.at < warm_up_s:
            continue
        for key, value in sample.values.items():
            if sample.at - born.get(key[0], -YOUNG_S) >= min(YOUNG_S, warm_up_s):
                minutes.setdefault(key, {}).setdefault(int(sample.at // 60), []).append(value)
    return tuple(_trend(key, by_minute) for key, by_minute in sorted(minutes.items()))


def _trend(key: tuple[str, str], by_minute: dict[int, list[float]]) -> Trend:
    points = [(minute / 60, statistics.median(by_minute[minute])) for minute in sorted(by_minute)]
    values = [value for _, value in points]
    fifth = max(1, len(values) // 5)
    least, share = BOUNDS[key[1]]
    middle = statistics.median(values)
    return Trend(
        *key,
        first=statistics.median(values[:fifth]),
        last=statistics.median(values[-fifth:]),
        most=max(max(one) for one in by_minute.values()),
        slope=sen(points),
        bound=max(least, share * middle),
        z=kendall_z(values),
    )


def restarts(samples: Sequence[Sample], who: str) -> int:
    """How often the processes of this name have been others than in the sample before."""
    pids = [sample.pids.get(who, ()) for sample in samples]
    return sum(1 for a, b in pairwise(pids) if a and b and a != b)


def table(found: Iterable[Trend]) -> str:
    """As docs/reliability.md has it."""
    rows = [
        "| process | what | first fifth | last fifth | most | per hour | bound | z | verdict |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    rows += [
        f"| {t.who} | {t.what} | {t.first:,.0f} | {t.last:,.0f} | {t.most:,.0f} | {t.slope:+,.1f} | "
        f"{t.bound:,.0f} | {t.z:+.1f} | {'**grows**' if t.grows else 'flat'} |"
        for t in found
    ]
    return "\n".join(rows)
