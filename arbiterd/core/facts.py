"""What one tick goes by. A stage reads it and returns what it changes; only decide makes the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypedDict, Unpack

from arbiterd.core.backend import phases
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.memory.device_state import UNSEEN, DeviceState
from arbiterd.core.notes import About, Notes, Open, Remark, Say
from arbiterd.core.state import DoorState, Lease, State
from arbiterd.model.actions import Outcome
from arbiterd.model.backend import LedgerRow, Phase, Placement
from arbiterd.model.events import Event, EventName, Incident, Severity
from arbiterd.model.launch import ABSENT, UnitObservation
from arbiterd.model.observation import Observation
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import BackendSettings, Settings


class EventFields(TypedDict, total=False):
    """Optional fields of an event."""

    action: str
    gpu: str
    reason: str
    bytes_expected: int
    bytes_freed: int
    took_ms: float
    kind: str


class Ask(StrEnum):
    """What a backend would begin, if its devices are free for it."""

    START = "start"
    WAKE = "wake"
    WARM = "warm"


@dataclass(frozen=True, slots=True)
class Step:
    """What one tick has made of a backend, what is to be said and done, and what it asks for (grants)."""

    backend: BackendState
    notes: Notes = ()
    ask: Ask | None = None
    learned: Mapping[str, LearnedCap] = field(default_factory=dict)

    def after(self, notes: Notes) -> Step:
        """The same, after these."""
        return replace(self, notes=(*notes, *self.notes)) if notes else self


@dataclass(frozen=True, slots=True)
class Facts:
    """``before``: the state as the tick found it. Backends to incidents: as far as the stages have come;
    ``state``: everything else of it, likewise. ``configured``: placements without what OOMs have taught.
    ``moved``: see core/memory/grants.py.
    """

    seen: Observation
    settings: Settings
    before: State
    state: State
    placements: Mapping[str, Placement]
    configured: Mapping[str, Placement]
    backends: Mapping[str, BackendState]
    devices: Mapping[str, DeviceState]
    doors: Mapping[str, DoorState]
    leases: Mapping[str, Lease]
    learned: Mapping[str, LearnedCap]
    incidents: tuple[Incident, ...]
    ledgers: Mapping[str, tuple[LedgerRow, ...]] = field(default_factory=dict)
    moved: Mapping[str, BackendState] = field(default_factory=dict)

    # -- questions -----------------------------------------------------------------------------
    def wanted(self, name: str) -> BackendSettings | None:
        """The backend's settings in the active mode, None when the mode does not name it."""
        return self.settings.active.backends.get(name)

    def known(self, name: str) -> BackendSettings | None:
        """Its settings in the active mode, else in another one: what leaves the mode is drained and
        stopped by its own times.
        """
        others = (mode.backends.get(name) for mode in self.settings.modes.values())
        return self.wanted(name) or next((one for one in others if one is not None), None)

    def device(self, uuid: str) -> DeviceState:
        """The device, or one that has not been seen."""
        return self.devices.get(uuid, UNSEEN)

    def unit(self, name: str) -> UnitObservation:
        """The unit, or ABSENT."""
        return self.seen.units.get(name, ABSENT)

    def outcome_of(self, action_id: str) -> Outcome | None:
        """The outcome of an action, if it ended since the last tick."""
        if not action_id:
            return None
        return next((o for o in self.seen.outcomes if o.action.id == action_id), None)

    def codes_429(self, name: str) -> int:
        """Answers 429 of this backend so far, as its door has logged them."""
        found = self.seen.gateway.requests.get(name)
        return found.codes.get("429", 0) if found else 0

    def gpu_of(self, name: str) -> str:
        """The backend's first device, "" on the CPU."""
        placement = self.placements.get(name)
        return placement.devices[0] if placement and placement.devices else ""

    # -- what a stage returns ------------------------------------------------------------------
    def put(self, backend: BackendState) -> Facts:
        """With this backend."""
        if self.backends.get(backend.name) is backend:
            return self
        return replace(self, backends={**self.backends, backend.name: backend})

    def put_device(self, uuid: str, device: DeviceState) -> Facts:
        """With this device."""
        if self.devices.get(uuid) is device:
            return self
        return replace(self, devices={**self.devices, uuid: device})

    def having(self, **changes: Any) -> Facts:
        """With these fields of ``state``."""
        return replace(self, state=self.state.having(**changes))

    def enter(self, backend: BackendState, phase: Phase, reason: str) -> BackendState:
        """The backend in this phase (core/backend/phases.py)."""
        seen, first = self.seen, self.before.first_tick
        return phases.enter(backend, phase, reason, seen.now, seen.wall, first=first)

    def action_id(self, what: str, backend: str, uuid: str = "") -> str:
        """Of run, tick, backend and what is done to it: no stage needs to know what another orders.
        ``uuid``: where a tick may do the same on each device.
        """
        place = f"-{list(self.seen.devices).index(uuid)}" if uuid else ""
        return f"act-{self.state.run}-{self.state.tick}-{backend}-{what}{place}"

    def say(
        self,
        name: EventName,
        severity: Severity,
        message: str,
        backend: str = "",
        about: About | str | None = None,
        **rest: Unpack[EventFields],
    ) -> Say:
        """One event; the backend's device is filled in."""
        if backend and "gpu" not in rest:
            rest["gpu"] = self.gpu_of(backend)
        return Say(
            Event(name=name, severity=severity, message=message, backend=backend, **rest), about
        )

    def open(
        self,
        name: EventName,
        severity: Severity,
        summary: str,
        unless: About,
        *,
        gpu: str = "",
        pids: tuple[int, ...] = (),
        evidence: tuple[tuple[str, str], ...] = (),
        otherwise: Say | Remark | None = None,
    ) -> Open:
        """An incident about the backend or device of ``unless``; a backend's device is filled in."""
        gpu = gpu or unless.gpu or self.gpu_of(unless.backend)
        return Open(unless, name, severity, summary, unless.backend, gpu, pids, evidence, otherwise)
