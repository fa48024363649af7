"""What core remembers of one backend from tick to tick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypedDict, Unpack

from arbiterd.core.backend.backend_axes import (
    Canaries,
    Effort,
    History,
    Nodes,
    Run,
    Sleep,
    Vitals,
    Warm,
    Wish,
)
from arbiterd.core.records import later, updated
from arbiterd.engines.base import Cause
from arbiterd.model.backend import Phase


class DrainCause(StrEnum):
    """Why a backend drains: what may take it back depends on it."""

    OPERATOR = "operator"  # ends only by resume
    CHANGED = "changed"
    UNWANTED = "unwanted"
    RESTART = "restart"
    PRESSURE = "pressure"
    SLEEP = "sleep"


# Who asked for a sleep, where it was no operator (those are "uid N").
LADDER = "pressure"
DRAIN_SENTENCES = {
    DrainCause.OPERATOR: "drained by an operator",
    DrainCause.CHANGED: "its configuration changed",
    DrainCause.UNWANTED: "not wanted any more",
    DrainCause.RESTART: "restart asked by an operator",
}


class After(StrEnum):
    """Where a backend goes once it has been stopped and its bytes are back."""

    STOPPED = "stopped"
    WAITING = "waiting"
    BACKOFF = "backoff"
    FAILED = "failed"
    SLEEPING = "sleeping"


class Axes(TypedDict, total=False):
    """Those of a backend."""

    wish: Wish
    run: Run
    history: History
    warm: Warm
    nodes: Nodes
    effort: Effort | None
    vitals: Vitals
    sleep: Sleep
    canaries: Canaries


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend: its phase and what belongs to that, and the axes. Times are monotonic seconds unless
    named ``_wall`` (epoch, for display).

    ``pending``: id of the action in flight for it, "" for none. ``after``: where it goes once it is
    stopped. ``drain``: why it drains, or drained last. ``deadline``: of the phase; ``hard_deadline``: of a
    start, however much it moves. ``blocked_by``: what the start gate waits for.
    """

    name: str
    phase: Phase = Phase.STOPPED
    since: float = 0.0
    since_wall: float = 0.0
    reason: str = ""
    pending: str = ""
    after: After = After.STOPPED
    drain: DrainCause | None = None
    deadline: float | None = None
    hard_deadline: float | None = None
    blocked_by: str = ""
    wish: Wish = Wish()
    run: Run = Run()
    history: History = History()
    warm: Warm = Warm()
    nodes: Nodes = Nodes()
    effort: Effort | None = None
    vitals: Vitals = Vitals()
    sleep: Sleep = Sleep()
    canaries: Canaries = Canaries()

    def having(self, **axes: Unpack[Axes]) -> BackendState:
        """With these axes; the same object when nothing differs."""
        return updated(self, **axes)

    # -- its phase ---------------------------------------------------------------------------------
    def entered(self, phase: Phase, reason: str, now: float, wall: float) -> BackendState:
        """In another phase; core/backend/phases.py says which may follow which."""
        return replace(self, phase=phase, reason=reason, since=now, since_wall=wall)

    def because(self, reason: str) -> BackendState:
        """In the same phase for another reason."""
        return updated(self, reason=reason)

    def due(self, deadline: float | None, hard: float | None = None) -> BackendState:
        """The phase ends then at the latest. ``hard``: of a start."""
        return updated(self, deadline=deadline, hard_deadline=hard or self.hard_deadline)

    def ordered(self, action: str, **axes: Unpack[Axes]) -> BackendState:
        """An action is under way for it."""
        return replace(self, pending=action, **axes)

    def heard(self, **axes: Unpack[Axes]) -> BackendState:
        """None is any more."""
        return updated(self, pending="", **axes)

    def blocked(self, kind: str) -> BackendState:
        """The start gate waits for this."""
        return updated(self, blocked_by=kind)

    # -- there and back ----------------------------------------------------------------------------
    def start(
        self, action: str, intent: str, cap: int, deadlines: tuple[float, float]
    ) -> BackendState:
        """A start is ordered: of what was before, only the history stays."""
        history = self.history.started(again=self.history.attempt > 0 or self.wish.restart)
        return replace(
            self,
            pending=action,
            deadline=deadlines[0],
            hard_deadline=deadlines[1],
            blocked_by="",
            wish=self.wish.started(),
            run=self.run.start(intent, cap),
            history=history,
            warm=self.warm.start(),
            vitals=Vitals(),
            sleep=Sleep(),
            canaries=Canaries(),
        )

    def ready(self, now: float, vitals: Vitals) -> BackendState:
        """It answers, and its canaries are tried."""
        took = None if self.run.adopted else now - self.since
        return replace(
            self,
            pending="",
            deadline=None,
            hard_deadline=None,
            run=self.run.ready(now),
            history=self.history.ready(took),
            vitals=vitals,
        )

    def leave(self, after: After, deadline: float, why: DrainCause) -> BackendState:
        """Drained before its end, or before its sleep."""
        return replace(self, pending="", after=after, deadline=deadline, drain=why)

    def stay(self) -> BackendState:
        """That drain is taken back."""
        return replace(self, after=After.STOPPED, deadline=None)

    def shed(self) -> BackendState:
        """Drained for as long as an operator wants it."""
        return replace(self, deadline=None, drain=DrainCause.OPERATOR)

    def fail(self, cause: Cause | None, deadline: float) -> BackendState:
        """It has ended unasked, or must. ``cause`` None: its last words are read until ``deadline``."""
        return replace(
            self,
            pending="",
            after=After.BACKOFF,
            deadline=deadline,
            run=self.run.stopping(),
            history=self.history.ended(cause),
            warm=self.warm.stop(),
        )

    def stop(self, action: str, after: After) -> BackendState:
        """A stop is ordered."""
        return replace(self, pending=action, after=after, deadline=None, run=self.run.stopping())

    def await_bytes(self, after: After, gone_at: float) -> BackendState:
        """It was stopped by the daemon before us, and is gone."""
        return replace(self, after=after, run=self.run.gone(gone_at))

    def gone(self, now: float) -> BackendState:
        """Nothing is left, and its bytes are back."""
        return replace(
            self,
            pending="",
            deadline=None,
            hard_deadline=None,
            run=self.run.released(),
            history=self.history.gone(now - self.since),
            warm=self.warm.released(),
            sleep=Sleep(),
        )

    def stopped_by_hand(self) -> BackendState:
        """By a person, past us."""
        return replace(
            self, pending="", deadline=None, wish=self.wish.park(), run=self.run.unseen()
        )

    # -- from tick to tick, from daemon to daemon ---------------------------------------------------
    def later(self, seconds: float) -> BackendState:
        """As if so much time had not passed; vitals and canaries apart."""
        moved = later(self, seconds, "deadline", "hard_deadline")
        return moved.having(run=self.run.later(seconds))

    def handed_over(self) -> BackendState:
        """What the next daemon cannot find out by itself."""
        draining = self.phase is Phase.DRAINING
        return BackendState(
            name=self.name,
            phase=self.phase,
            since=self.since,
            since_wall=self.since_wall,
            reason=self.reason if self.phase is not Phase.READY else "",
            after=self.after,
            drain=self.drain,
            deadline=self.deadline if draining else None,
            wish=self.wish,
            run=self.run.handed_over(moving=self.phase in (Phase.STOPPING, Phase.SLEEPING)),
            history=self.history,
            warm=self.warm.handed_over(),
            sleep=self.sleep,
            canaries=self.canaries if self.canaries.done else Canaries(),
        )

    def goes_on(self, old: BackendState) -> BackendState:
        """Draining before its end, as the daemon before us had begun."""
        return replace(
            self,
            after=old.after,
            drain=old.drain,
            deadline=old.deadline,
            run=old.run,
            sleep=old.sleep,
        )


def new(
    name: str, now: float, wall: float, times: tuple[float | None, float | None]
) -> BackendState:
    """A backend that was not there before. ``times``: seconds of its last start and stop, where known."""
    history = History().ready(times[0]).gone(times[1])
    return BackendState(name, since=now, since_wall=wall, reason="new", history=history)


def known(name: str, phase: Phase, intent: str, reason: str = "") -> BackendState:
    """As far as others know it: a published status, a launcher's record."""
    return BackendState(name, phase=phase, reason=reason, run=Run().found(intent))


def drained(backend: BackendState) -> bool:
    """Drained by an operator: until that is taken back, without a deadline."""
    return backend.phase is Phase.DRAINING and backend.deadline is None


def ending(backend: BackendState) -> bool:
    """Drained before a stop or a sleep, which comes at its deadline at the latest."""
    return backend.phase is Phase.DRAINING and backend.deadline is not None


def serves(backend: BackendState) -> bool:
    """Ready, or ready and drained by an operator: its engine answers and may be asked for memory."""
    return backend.phase is Phase.READY or drained(backend)
