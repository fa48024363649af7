"""What core remembers from tick to tick. Frozen: a tick makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from arbiterd.engines.base import Cause
from arbiterd.model.backend import Phase
from arbiterd.model.devices import Pressure
from arbiterd.model.events import Incident
from arbiterd.model.gateway import Admit

T = TypeVar("T", "BackendState", "Vitals")


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


@dataclass(frozen=True, slots=True)
class Vitals:
    """Health evidence of the running invocation, counted once per result."""

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


@dataclass(frozen=True, slots=True)
class BackendState:
    """One backend. Times are monotonic seconds unless named ``_wall`` (epoch, for display).

    ``pending``: id of the action in flight for it, "" for none. ``held``: an operator drained it.
    ``parked``: an operator stopped it by hand; it stays so until resume.
    ``adopted``: taken over from an earlier run, not heard from yet.
    ``blocked_by``: what the start gate waits for. ``held_bytes``: what it held, per device, when
    last seen alive; ``spare_then``: the device's unattributed bytes at that moment. ``gone_at``:
    its last process was gone; from then on its bytes must come back.
    """

    name: str
    phase: Phase = Phase.STOPPED
    since: float = 0.0
    since_wall: float = 0.0
    reason: str = ""
    pending: str = ""
    after: After = After.STOPPED
    held: bool = False
    parked: bool = False
    restart_asked: bool = False
    invocation: str = ""
    intent: str = ""
    deadline: float | None = None
    hard_deadline: float | None = None
    progress_cpu: float = 0.0
    progress_at: float = 0.0
    progress_log: int = 0
    not_before: float = 0.0
    failures: tuple[float, ...] = ()
    attempt: int = 0
    restarts: int = 0
    ready_at: float | None = None
    start_took_s: float | None = None
    cause: Cause | None = None
    blocked_by: str = ""
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    spare_then: Mapping[str, int] = field(default_factory=dict)
    gone_at: float | None = None
    release_slow_said: bool = False
    adopted: bool = False
    warm_done: bool = False
    warm_failures: int = 0
    warm_not_before: float = 0.0
    warm_pending: str = ""
    vitals: Vitals = Vitals()


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
class DeviceState:
    """One device. ``samples``: fresh ones since our start. ``band_since``: when the condition that
    would change the pressure band began, None while it does not hold.
    """

    samples: int = 0
    last_sample_at: float = -1.0
    pressure: Pressure = Pressure.UNKNOWN
    band_since: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Everything. ``run``: a short id of this daemon run, the prefix of incident and action ids.

    ``orphans``: when each leftover process (pid, start time) was first seen without a unit.
    ``incidents``: newest first. ``held``: since when each load waits for room.
    """

    run: str
    counter: int = 0
    mode: str = ""
    first_tick: bool = True
    backends: Mapping[str, BackendState] = field(default_factory=dict)
    devices: Mapping[str, DeviceState] = field(default_factory=dict)
    incidents: tuple[Incident, ...] = ()
    orphans: Mapping[tuple[int, int], float] = field(default_factory=dict)
    orphan_pending: str = ""
    doors: Mapping[str, DoorState] = field(default_factory=dict)
    leases: Mapping[str, Lease] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)
    gateway_bad_since: float | None = None
    overheads: Mapping[str, int] = field(default_factory=dict)
