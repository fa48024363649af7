"""What core remembers from tick to tick. Frozen: a tick makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.limits import LONG_AGO
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.model.events import Incident
from arbiterd.model.gateway import Admit
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change, SwitchResult


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
    """States without what a fresh daemon finds out by itself (core/backend/carry.py)."""

    backends: Mapping[str, BackendState] = field(default_factory=dict)
    devices: Mapping[str, DeviceState] = field(default_factory=dict)
    switch: Switch | None = None
    last: SwitchResult | None = None
    times: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)


NOTHING = Carry()


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

    def having(self, **fields: Any) -> State:
        """With these fields."""
        return replace(self, **fields)
