"""Back-off and breaker: when a failed backend is tried again."""

from __future__ import annotations

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.limits import (
    BREAKER_FAILURES,
    BREAKER_WINDOW_S,
    HALF_OPEN_S,
    HEALTHY_S,
    JITTER,
    STABLE_S,
)
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.observation import Observation
from arbiterd.model.settings import BackendSettings


def delay_s(settings: BackendSettings, attempt: int, jitter: float) -> float:
    """Seconds before attempt ``attempt`` (1 = first): doubling, bounded, plus up to 25 % jitter."""
    doubled = settings.restart_delay_s * 2.0 ** min(attempt - 1, 30)
    return min(settings.restart_delay_max_s, doubled) * (1 + JITTER * jitter)


def rest_until(now: float) -> float:
    """When an open breaker lets one start through."""
    return now + HALF_OPEN_S


def failed(
    backend: BackendState, cause: Cause, settings: BackendSettings, seen: Observation
) -> tuple[BackendState, bool]:
    """Count a failure. Returns the state with its next start, and whether the breaker is open. The first
    one after HEALTHY_S is tried again at once, unless it was ended for growing beyond its cap.
    """
    now, history = seen.now, backend.history.ended(cause)
    ready_at = backend.run.ready_at
    ready_s = 0.0 if ready_at is None else now - ready_at
    attempt = 1 if ready_s >= STABLE_S else history.attempt + 1
    recent = tuple(at for at in history.failures if now - at < BREAKER_WINDOW_S)
    recent = (*recent, now)[-BREAKER_FAILURES:]
    open_ = len(recent) >= BREAKER_FAILURES
    wait = HALF_OPEN_S if open_ else delay_s(settings, attempt, seen.jitter)
    if ready_s >= HEALTHY_S and not open_ and cause.cause is not CauseClass.OVER_CAP:
        wait = 0.0
    return backend.having(history=history.failed(recent, attempt, now + wait)), open_


def closed(backend: BackendState, now: float) -> BackendState:
    """Ready again: once it has been so for long enough, the past is forgotten."""
    ready_at, history = backend.run.ready_at, backend.history
    if ready_at is None or now - ready_at < STABLE_S or not history.failures:
        return backend
    return backend.having(history=history.stable())
