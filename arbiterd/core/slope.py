"""A robust slope over the last seconds, and the windows it is computed from."""

from __future__ import annotations

from statistics import median
from typing import TypeAlias

from arbiterd.core.limits import (
    GROWING_BYTES,
    SLOPE_GAP_S,
    SLOPE_SAMPLES,
    SLOPE_WINDOW_S,
    STEP_BYTES,
)

Window: TypeAlias = tuple[tuple[float, int], ...]  # (monotonic s, bytes), oldest first

_FAST_STEPS = 2  # so many large steps in a row, all upwards, are no steps but a steep ramp
_FAST = 2.0 * STEP_BYTES  # bytes a second that make a step large, however short it was
_APART_S = 0.02  # samples nearer to each other are looked at as one


def push(window: Window, at: float, size: int) -> Window:
    """The window with one more sample. A gap forgets what lies before it."""
    if window:
        last_at = window[-1][0]
        if at <= last_at:
            return window
        if at - last_at > SLOPE_GAP_S:
            return ((at, size),)
        oldest = at - SLOPE_WINDOW_S
        if window[0][0] < oldest:
            window = tuple(one for one in window if one[0] >= oldest)
    return (*window, (at, size))


def slope(window: Window) -> float | None:
    """Bytes a second by Theil and Sen: the median of all pairs' slopes, so that a third of the samples
    may be wrong. A single step larger than STEP_BYTES is no slope: what lies before it does not
    count. Two or more of them in a row, upwards, are a ramp too steep for the poll: their own mean
    tells, at once. None with fewer than SLOPE_SAMPLES.
    """
    steep = _steep(window)
    if steep is not None:
        return steep
    kept = _since_step(window)
    if len(kept) < SLOPE_SAMPLES:
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
    """Whether it rises now: by more than GROWING_BYTES over the window, and at its end as well."""
    if len(window) < 3:
        return False
    rise = window[-1][1] - min(size for _, size in window)
    return rise > GROWING_BYTES and window[-1][1] > window[-3][1]


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
