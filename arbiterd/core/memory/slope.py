"""A robust slope over the last seconds, and the windows it is computed from."""

from __future__ import annotations

from statistics import median
from typing import TypeAlias

from arbiterd.core.limits import (
    GROWING_BYTES,
    RISING_S,
    SLOPE_GAP_POLLS,
    SLOPE_GAP_S,
    SLOPE_SPAN_S,
    SLOPE_WINDOW_S,
    STEP_BYTES,
    WINDOW_POINTS,
)

Window: TypeAlias = tuple[tuple[float, int], ...]  # (monotonic s, bytes), oldest first

_LEAST = 3  # points that a slope or a rise is told from
_NEWEST = 4  # points that are never thinned: steps and steep ramps are read from them
_FAST_STEPS = 2  # so many large steps in a row, all upwards, are no steps but a steep ramp
_FAST = 2.0 * STEP_BYTES  # bytes a second that make a step large, however short it was
_APART_S = 0.02  # samples nearer to each other are looked at as one
_LOWEST_S = SLOPE_WINDOW_S / WINDOW_POINTS


def gap_s(poll_s: float) -> float:
    """Seconds between two samples that make a hole, where the loop looks each ``poll_s``."""
    return max(SLOPE_GAP_S, SLOPE_GAP_POLLS * poll_s)


def push(window: Window, at: float, size: int, gap: float = SLOPE_GAP_S) -> Window:
    """The window with one more sample: SLOPE_WINDOW_S long, or as long as a few slow samples take. A gap
    of more than ``gap`` seconds forgets what lies before it. Never more than WINDOW_POINTS: the older
    ones are thinned where they are densest.
    """
    if window:
        last_at = window[-1][0]
        if at <= last_at:
            return window
        if at - last_at > gap:
            return ((at, size),)
        oldest = at - SLOPE_WINDOW_S
        if window[0][0] < oldest:
            young = tuple(one for one in window if one[0] >= oldest)
            window = young if len(young) >= _LEAST else window[-_LEAST:]
        if len(window) >= WINDOW_POINTS:
            window = _thinned(window)
    return (*window, (at, size))


def push_lowest(window: Window, at: float, size: int) -> Window:
    """The least of each fifth of a second, for SLOPE_WINDOW_S."""
    if window and at - window[-1][0] < _LOWEST_S:
        return (*window[:-1], (window[-1][0], min(size, window[-1][1])))
    return (*(one for one in window if at - one[0] <= SLOPE_WINDOW_S), (at, size))


def slope(window: Window) -> float | None:
    """Bytes a second by Theil and Sen: the median of all pairs' slopes, so that a third of the samples
    may be wrong. A single step larger than STEP_BYTES is no slope: what lies before it does not
    count. Two or more of them in a row, upwards, are a ramp too steep for the poll: their own mean
    tells, at once. None where the samples span less than SLOPE_SPAN_S.
    """
    steep = _steep(window)
    if steep is not None:
        return steep
    kept = _since_step(window)
    if len(kept) < _LEAST or kept[-1][0] - kept[0][0] < SLOPE_SPAN_S:
        return None
    if all(size == kept[0][1] for _, size in kept):
        return 0.0
    pairs = [
        (later - size) / (then - at)
        for i, (at, size) in enumerate(kept)
        for then, later in kept[i + 1 :]
    ]
    return median(pairs)


def growing(window: Window) -> bool:
    """Whether it rises now: by more than GROWING_BYTES over the window, and above what it was RISING_S
    ago.
    """
    if len(window) < _LEAST:
        return False
    end, last = window[-1]
    rise = last - min(size for _, size in window)
    ago = next((size for at, size in reversed(window) if end - at >= RISING_S), last)
    return rise > GROWING_BYTES and last > ago


def last_step(window: Window) -> int:
    """Bytes between the last two samples."""
    return window[-1][1] - window[-2][1] if len(window) > 1 else 0


def _steep(window: Window) -> float | None:
    """The mean of the ramp at the end of the window, None where there is none. By rates, not by bytes
    alone: a second look comes 25 ms after the first, and a tenth of the bytes is the same ramp.
    """
    if len(window) < 1 + _FAST_STEPS:
        return None
    (end, last), run = window[-1], 0
    then, later = end, last
    for at, size in reversed(window[:-1]):
        if then - at < _APART_S:
            continue  # what lies between two allocations says nothing
        if later - size <= min(float(STEP_BYTES), _FAST * (then - at)):
            break
        then, later, run = at, size, run + 1
    if run < _FAST_STEPS or last - later <= STEP_BYTES:
        return None
    return (last - later) / (end - then)


def _since_step(window: Window) -> Window:
    for i in range(len(window) - 1, 0, -1):
        if abs(window[i][1] - window[i - 1][1]) > STEP_BYTES:
            return window[i:]
    return window


def _thinned(window: Window) -> Window:
    """Without the point whose neighbours are nearest to each other, first and newest ones excepted."""
    inner = range(1, len(window) - _NEWEST)
    drop = min(inner, key=lambda i: window[i + 1][0] - window[i - 1][0])
    return (*window[:drop], *window[drop + 1 :])
