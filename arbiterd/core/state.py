"""What core remembers from tick to tick. Frozen: a tick makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from arbiterd.core.limits import LEAD_S, LONG_AGO
from arbiterd.core.slope import Window
from arbiterd.engines.base import Cause
from arbiterd.model.backend import Phase, Placement
from arbiterd.model.devices import Device, Pressure
from arbiterd.model.events import Incident
from arbiterd.model.gateway import Admit
from arbiterd.model.pressure import Candidate, LearnedCap, Rung
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change, SwitchResult


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


T = TypeVar("T", "BackendState", "Vitals", "DeviceState")


def updated(one: T, **fields: Any) -> T:
    """``replace``, but the same object when nothing differs: most of a quiet tick (docs/benchmarks.md)."""
    if all(getattr(one, name) == value for name, value in fields.items()):
        return one
    return replace(one, **fields)


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


@dataclass(frozen=True, slots=True)
class DoorState:
    """What the doors do for one backend. ``since``: last change of ``admit``. ``good_since``: it
    takes work since then, None while it does not. ``away``: its models are with a substitute.
    ``opened``: it has taken work before, so that a refusal is worth telling.
    """

    admit: Admit = Admit.SHED
    since: float = 0.0
    good_since: float | None = None
    away: bool = False
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted load: a memory event on its device until it ends or ``expires`` (monotonic s)."""

    id: str
    backend: str
    model: str
    predicted_bytes: int
    granted_at: float
    expires: float


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The one reclaim in flight on a device: from its order until its bytes are seen, or its deadline.

    ``stage``: what it waits for. ``action``: the id of the action under way, "" for none. ``used``:
    what its target held when it began. ``told``: the action's outcome came at this time. ``model``:
    trim's. ``runner``: the process that is killed alone when an unload is ignored.
    """

    rung: Rung
    backend: str
    reason: str
    began: float
    began_wall: float
    expected: int
    used: int
    deadline: float
    incident: str
    stage: str = "asked"
    action: str = ""
    told: float | None = None
    model: str = ""
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Braked:
    """Brakes on one backend. ``hold``: why its new requests are held, "" for not. ``limit``: requests
    in flight while throttled, None for all. ``freezing``: id of the freeze under way.
    """

    hold: str = ""
    limit: int | None = None
    moved_at: float = float("-inf")
    frozen_at: float = float("-inf")
    freezing: str = ""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device. ``samples``: fresh ones since our start. ``band_since``: when the condition that
    would change the pressure band began, None while it does not hold.

    ``seen_at``: the last sample whose memory and process list belong together; ``windows`` holds
    those of the last seconds by holder, "excess" among them. ``releasing``: bytes that the dead have
    left and that are not free yet, until ``releasing_until``. ``over_since``: who is over its cap,
    since when. ``alarms``: critical samples in a row. ``moved_at``: excess last moved.
    ``disruptive``, ``done``: when the ladder disturbed somebody, and each rung's last use.
    ``fault``: the Xid that needs a reset, "" for none; ``fault_seen``: the driver's recovery field has
    confirmed it; ``fault_cleared``: an operator says that the card is well.
    """

    samples: int = 0
    last_sample_at: float = -1.0
    pressure: Pressure = Pressure.UNKNOWN
    band_since: float | None = None
    seen_at: float = -1.0
    solvency: int | None = None
    used: Mapping[str, int] = field(default_factory=dict)
    windows: Mapping[str, Window] = field(default_factory=dict)
    frees: Window = ()
    excess: int = 0
    slope: float | None = None
    time_to_full_s: float | None = None
    releasing: int = 0
    releasing_until: float = 0.0
    over_since: Mapping[str, float] = field(default_factory=dict)
    alarms: int = 0
    alarm_at: float = float("-inf")
    moved_at: float = float("-inf")
    lead_s: float = LEAD_S
    reclaim: Reclaim | None = None
    braked: Mapping[str, Braked] = field(default_factory=dict)
    loads_held: str = ""
    disruptive: tuple[float, ...] = ()
    restarts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    done: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    foreign_calm_at: float | None = None
    fault: str = ""
    fault_code: int = 0
    fault_seen: bool = False
    fault_cleared: bool = False


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch under way. ``changes``: by backend. ``failures``: how often each had failed before.
    ``rolling_back``: why the layout before comes back, "" in an ordinary switch. ``to_sha``: digest of
    the file it goes to; ``loaded_at``: when that was read.
    """

    from_mode: str
    to_mode: str
    began: float
    began_wall: float
    deadline: float
    changes: Mapping[str, Change]
    failures: Mapping[str, int]
    rolling_back: str = ""
    estimated_s: float = 0.0
    to_sha: str = ""
    loaded_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Carry:
    """States without what a fresh daemon finds out by itself (core/carry.py)."""

    backends: Mapping[str, BackendState] = field(default_factory=dict)
    devices: Mapping[str, DeviceState] = field(default_factory=dict)
    switch: Switch | None = None
    last: SwitchResult | None = None
    times: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """Placements as configured, for as long as settings and inventory are the same objects."""

    settings: Settings
    devices: tuple[Device, ...]
    placements: Mapping[str, Placement]


@dataclass(frozen=True, slots=True)
class State:
    """Everything. ``run``: a short id of this daemon run; ``tick``: how many it has decided. Ids of
    incidents and actions are made of both.

    ``orphans``: when each leftover process (pid, start time) was first seen without a unit.
    ``incidents``: newest first. ``held``: since when each load waits for room, ``loads_at``: last look
    at them. ``learned``: what OOMs
    have taught, by ``learn.key``. ``carried``: what the daemon before us left, until the first tick.
    ``refusals``: answers 429 counted so far, by backend. ``settings``: those of the last tick;
    ``good``: the last that came through; ``rollback``: why those come back at the next tick;
    ``unsettled``: whom the switch that failed had touched. ``last``: what came of the last reload.
    ``times``: last start and stop, seconds, of backends that no mode in force names any more.
    ``hosts_told``: unknown names that clients came by, told already.
    ``placed``: the placements of the last tick and what they were made from.
    """

    run: str
    tick: int = 0
    mode: str = ""
    first_tick: bool = True
    carried: Carry | None = None
    backends: Mapping[str, BackendState] = field(default_factory=dict)
    devices: Mapping[str, DeviceState] = field(default_factory=dict)
    incidents: tuple[Incident, ...] = ()
    orphans: Mapping[tuple[int, int], float] = field(default_factory=dict)
    orphan_pending: str = ""
    doors: Mapping[str, DoorState] = field(default_factory=dict)
    leases: Mapping[str, Lease] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    loads_at: float = LONG_AGO
    gateway_bad_since: float | None = None
    gateway_served: bool = False  # since this daemon came
    hosts_told: frozenset[str] = frozenset()
    learned: Mapping[str, LearnedCap] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    settings: Settings | None = None
    good: Settings | None = None
    switch: Switch | None = None
    rollback: str = ""
    placed: Placed | None = None
    unsettled: frozenset[str] = frozenset()
    last: SwitchResult | None = None
    times: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
