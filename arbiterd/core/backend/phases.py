"""Phases of a backend: which may follow which, and the one function that changes one.

``docs/architecture.md`` draws the table; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.model.backend import Phase

TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.STOPPED: frozenset({Phase.WAITING, Phase.STOPPING}),
    Phase.WAITING: frozenset({Phase.STARTING, Phase.STOPPED, Phase.STOPPING}),
    Phase.STARTING: frozenset({Phase.READY, Phase.DRAINING, Phase.STOPPING}),
    Phase.READY: frozenset({Phase.DRAINING, Phase.STOPPING}),
    Phase.DRAINING: frozenset({Phase.READY, Phase.SLEEPING, Phase.STOPPING}),
    Phase.SLEEPING: frozenset({Phase.READY, Phase.DRAINING, Phase.STOPPING}),
    Phase.STOPPING: frozenset({Phase.STOPPED, Phase.WAITING, Phase.BACKOFF, Phase.FAILED}),
    Phase.BACKOFF: frozenset({Phase.WAITING, Phase.STOPPED, Phase.STOPPING}),
    Phase.FAILED: frozenset({Phase.WAITING, Phase.STOPPED, Phase.STOPPING}),
}
# In the first tick of a daemon: what it finds alive, and what the one before it has handed over.
FIRST: Final = frozenset(
    {Phase.STARTING, Phase.DRAINING, Phase.SLEEPING, Phase.STOPPING, Phase.BACKOFF, Phase.FAILED}
)


class IllegalTransition(RuntimeError):
    """A defect of core: this phase cannot follow that one."""


def enter(
    backend: BackendState, phase: Phase, reason: str, now: float, wall: float, *, first: bool
) -> BackendState:
    """The backend in this phase; ``since`` moves only when the phase really changes.

    ``now``, ``wall``: seconds, monotonic and of the epoch. ``first``: the daemon's first tick.

    Raises:
        IllegalTransition: the table does not name it.

    """
    if backend.phase is phase:
        return backend.because(reason)
    taken_over = first and backend.phase is Phase.STOPPED and phase in FIRST
    if not taken_over and phase not in TRANSITIONS[backend.phase]:
        msg = f"{backend.name}: {backend.phase.value} -> {phase.value} ({reason})"
        raise IllegalTransition(msg)
    return backend.entered(phase, reason, now, wall)
