"""What core remembers of one backend from tick to tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from arbiterd.core.limits import LONG_AGO
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


class SleepStage(StrEnum):
    """How far a sleep, or the way back, has come."""

    AWAKE = "awake"
    FALLING = "falling"
    ASLEEP = "asleep"
    WAKING = "waking"
    CHECKING = "checking"


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep of one backend. ``by``: who asked ("" while awake; LADDER for the ladder). ``wake``:
    it is to come back. ``held``: bytes it held awake, ``freed``: what sleep gave back, per device.
    """

    stage: SleepStage = SleepStage.AWAKE
    by: str = ""
    wake: bool = False
    at: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict)
    freed: Mapping[str, int] = field(default_factory=dict)
    canary_seq: int = 0


@dataclass(frozen=True, slots=True)
class Canaries:
    """What trying canaries before ready has found. ``loaded_at``: its models were there (when it first
    answered). ``asked``: the model on trial since ``asked_at``, ``before``: bytes it held then, per device,
    by a reading newer than ``loaded_at``. ``without``: why a model has none.
    """

    done: bool = False
    loaded_at: float | None = None
    asked: str = ""
    asked_at: float = 0.0
    before: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effort:
    """The last sample of a memory event's progress. ``moved_at``: when it last made some; ``hung``: too
    long ago. CPU in seconds; bytes of output and I/O so far, and held on the host and on devices.
    """

    at: float
    moved_at: float
    cpu_s: float
    log_bytes: int
    io_bytes: int
    memory_bytes: int
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Vitals:
    """Health evidence of the running invocation, counted once per result.

    ``door_why``: why a client's way to it is not open, "" while it is; ``door_since``: since when;
    ``door_good``: it has been open. ``unanswered_since``: its door has let in requests, ``let_in`` of
    them before, and has seen no answer since then; ``suspect``: for stuck_after, and no canary can tell.
    """

    seen_seq: int = 0
    bad: int = 0
    good: int = 0
    canary_seq: int = 0
    canary_bad: int = 0
    canary_asked_at: float = 0.0
    canary_due: bool = False
    work: float = 0.0
    work_at: float = 0.0
    proof_at: float = 0.0
    sick_since: float | None = None
    stuck: bool = False
    why: str = ""
    degraded: str = ""
    let_in: int = 0
    unanswered_since: float | None = None
    suspect: bool = False
    door_seq: int = 0
    door_bad: int = 0
    door_good: bool = False
    door_since: float | None = None
    door_why: str = ""


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend. Times are monotonic seconds unless named ``_wall`` (epoch, for display).

    ``pending``: id of the action in flight for it, "" for none. ``held``: an operator drained it.
    ``parked``: an operator stopped it by hand; it stays so until resume.
    ``adopted``: taken over from an earlier run, not heard from yet.
    ``started_cap``: bytes, its cap on each device when it was started.
    ``blocked_by``: what the start gate waits for. ``held_bytes``: what it held, per device, when
    last seen alive; ``spare_then``: the device's unattributed bytes at that moment. ``missed``: what it
    held on devices that are lost, or back and not looked at yet. ``gone_at``: its last process was gone;
    from then on its bytes must come back. ``drain``: why it drains, or drained last.
    ``nodes_asked``: id of the last action that makes its device nodes; ``nodes_problem``: why that failed.
    """

    name: str
    phase: Phase = Phase.STOPPED
    since: float = 0.0
    since_wall: float = 0.0
    reason: str = ""
    pending: str = ""
    after: After = After.STOPPED
    drain: DrainCause | None = None
    held: bool = False
    parked: bool = False
    restart_asked: bool = False
    invocation: str = ""
    intent: str = ""
    deadline: float | None = None
    hard_deadline: float | None = None
    effort: Effort | None = None
    not_before: float = 0.0
    failures: tuple[float, ...] = ()
    failed_count: int = 0
    attempt: int = 0
    restarts: int = 0
    ready_at: float | None = None
    start_took_s: float | None = None
    stop_took_s: float | None = None
    started_cap: int = 0
    cause: Cause | None = None
    blocked_by: str = ""
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    spare_then: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    gone_at: float | None = None
    release_slow_said: bool = False
    adopted: bool = False
    warm_done: bool = False
    warm_failures: int = 0
    warm_not_before: float = 0.0
    warm_pending: str = ""
    warm_away_until: float = 0.0
    load_ended_at: float = LONG_AGO
    client_load_at: float = LONG_AGO
    vitals: Vitals = Vitals()
    sleep: Sleep = Sleep()
    canaries: Canaries = Canaries()
    nodes_asked_at: float = LONG_AGO
    nodes_asked: str = ""
    nodes_problem: str = ""
    ooms: tuple[float, ...] = ()


def drained(backend: BackendState) -> bool:
    """Drained by an operator: until that is taken back, without a deadline."""
    return backend.phase is Phase.DRAINING and backend.deadline is None


def ending(backend: BackendState) -> bool:
    """Drained before a stop or a sleep, which comes at its deadline at the latest."""
    return backend.phase is Phase.DRAINING and backend.deadline is not None


def serves(backend: BackendState) -> bool:
    """Ready, or ready and drained by an operator: its engine answers and may be asked for memory."""
    return backend.phase is Phase.READY or drained(backend)
