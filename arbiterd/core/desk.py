"""The working desk of one tick: collects actions, events, incidents and new backend states.

It is the only mutable thing in core and never outlives the tick, so ``decide`` stays pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias, TypedDict, Unpack

from arbiterd.core import phases
from arbiterd.core.limits import INCIDENTS_KEPT
from arbiterd.core.state import BackendState, DeviceState, DoorState, Lease, State
from arbiterd.model.actions import Action, Outcome
from arbiterd.model.backend import LedgerRow, Phase, Placement
from arbiterd.model.events import ActionRecord, Event, EventName, Incident, Severity
from arbiterd.model.launch import ABSENT, UnitObservation
from arbiterd.model.observation import Observation
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import BackendSettings, Settings

Change: TypeAlias = Callable[[Incident], Incident]


class EventFields(TypedDict, total=False):
    """Optional fields of an event."""

    incident: str
    action: str
    gpu: str
    reason: str
    bytes_expected: int
    bytes_freed: int
    took_ms: float
    kind: str


class Desk:
    """Everything one tick reads and writes."""

    def __init__(
        self,
        observation: Observation,
        state: State,
        settings: Settings,
        placements: dict[str, Placement],
        configured: dict[str, Placement] | None = None,
    ) -> None:
        self.seen = observation
        self.settings = settings
        self.state = state
        self.placements = placements
        self.configured = placements if configured is None else configured
        self.backends: dict[str, BackendState] = dict(state.backends)
        self.moved: Mapping[str, BackendState] = {}
        self.actions: list[Action] = []
        self.events: list[Event] = []
        self.incidents: list[Incident] = list(state.incidents)
        # Made once a tick: every ready backend looks at its device's.
        self.doors: dict[str, DoorState] = dict(state.doors)
        self.leases: dict[str, Lease] = dict(state.leases)
        self.ledgers: dict[str, tuple[LedgerRow, ...]] = {}
        self.devices: dict[str, DeviceState] = dict(state.devices)
        self.learned: dict[str, LearnedCap] = dict(state.learned)

    # -- reading -------------------------------------------------------------------------------
    def wanted(self, name: str) -> BackendSettings | None:
        """The backend's settings in the active mode, None when the mode does not name it."""
        return self.settings.active.backends.get(name)

    def known(self, name: str) -> BackendSettings | None:
        """Its settings in the active mode, else in another one: what leaves the mode is drained and
        stopped by its own times.
        """
        others = (mode.backends.get(name) for mode in self.settings.modes.values())
        return self.wanted(name) or next((one for one in others if one is not None), None)

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

    # -- writing -------------------------------------------------------------------------------
    def action_id(self, what: str, backend: str, uuid: str = "") -> str:
        """Of run, tick, backend and what is done to it: no stage needs to know what another orders.
        ``uuid``: where a tick may do the same on each device.
        """
        place = f"-{list(self.seen.devices).index(uuid)}" if uuid else ""
        return f"act-{self.state.run}-{self.state.tick}-{backend}-{what}{place}"

    def put(self, backend: BackendState) -> BackendState:
        """Keep the new state of a backend."""
        self.backends[backend.name] = backend
        return backend

    def enter(self, backend: BackendState, phase: Phase, reason: str) -> BackendState:
        """Change phase."""
        seen, first = self.seen, self.state.first_tick
        return self.put(phases.enter(backend, phase, reason, seen.now, seen.wall, first=first))

    def tell(
        self,
        name: EventName,
        severity: Severity,
        message: str,
        backend: str = "",
        **rest: Unpack[EventFields],
    ) -> None:
        """Log one event; the backend's device is filled in."""
        if backend and "gpu" not in rest:
            rest["gpu"] = self.gpu_of(backend)
        self.events.append(
            Event(name=name, severity=severity, message=message, backend=backend, **rest)
        )

    def act(self, action: Action, incident: str = "", bytes_expected: int | None = None) -> None:
        """Order an action and note it in its incident."""
        self.actions.append(action)
        if incident:
            record = ActionRecord(
                id=action.id,
                action=type(action).__name__,
                target=action.backend,
                reason=action.reason,
                started_at=self.seen.wall,
                bytes_expected=bytes_expected,
            )
            self._edit(incident, lambda one: replace(one, actions=(*one.actions, record)))

    # -- incidents -----------------------------------------------------------------------------
    def open_incident(
        self, backend: str = "", gpu: str = "", *events: EventName
    ) -> Incident | None:
        """The open incident of these events about this backend or device."""
        return next(
            (
                one
                for one in self.incidents
                if one.closed_at is None
                and one.backend == backend
                and (not gpu or one.gpu == gpu)
                and one.event in events
            ),
            None,
        )

    def raise_incident(
        self,
        name: EventName,
        severity: Severity,
        summary: str,
        *,
        backend: str = "",
        gpu: str = "",
        pids: tuple[int, ...] = (),
        evidence: tuple[tuple[str, str], ...] = (),
    ) -> str:
        """Open an incident and log it; returns its id. Keep one per trouble: look before."""
        incident = Incident(
            id=self._incident_id(),
            event=name,
            severity=severity,
            opened_at=self.seen.wall,
            summary=summary,
            backend=backend,
            gpu=gpu or self.gpu_of(backend),
            pids=pids,
            evidence=evidence,
        )
        self.incidents.insert(0, incident)
        self._trim()
        self.tell(name, severity, summary, backend, incident=incident.id, gpu=incident.gpu)
        return incident.id

    def _incident_id(self) -> str:
        """Of the run, the tick, and which of its incidents it is."""
        prefix = f"inc-{self.state.run}-{self.state.tick}-"
        return prefix + str(1 + sum(one.id.startswith(prefix) for one in self.incidents))

    def tell_within(self, one: Incident, name: EventName, message: str) -> None:
        """Log, once per incident, what holds up its end; kept in its evidence."""
        if one.event is name or any(key == name.value for key, _ in one.evidence):
            return
        note = (name.value, message)
        self._edit(one.id, lambda old: replace(old, evidence=(*old.evidence, note)))
        self.tell(name, Severity.WARNING, message, one.backend, incident=one.id, gpu=one.gpu)

    def close_incident(self, incident_id: str, name: EventName, message: str) -> None:
        """Close it and log how."""
        one = next((i for i in self.incidents if i.id == incident_id), None)
        if one is None or one.closed_at is not None:
            return
        self._edit(incident_id, lambda old: replace(old, closed_at=self.seen.wall))
        self.tell(name, Severity.NOTICE, message, one.backend, incident=one.id, gpu=one.gpu)

    def record(self, incident_id: str, record: ActionRecord) -> None:
        """Write something that has ended into an incident."""
        self._edit(incident_id, lambda old: replace(old, actions=(*old.actions, record)))

    def note_outcome(self, outcome: Outcome, bytes_freed: int | None = None) -> None:
        """Write an outcome into whichever incident holds its action."""
        text = "done" if outcome.ok else outcome.detail
        for incident in self.incidents:
            if any(record.id == outcome.action.id for record in incident.actions):
                records = tuple(
                    replace(r, took_ms=outcome.took_ms, outcome=text, bytes_freed=bytes_freed)
                    if r.id == outcome.action.id
                    else r
                    for r in incident.actions
                )
                changed = replace(incident, actions=records)
                self.incidents = [changed if i.id == changed.id else i for i in self.incidents]
                return

    def _edit(self, incident_id: str, change: Change) -> None:
        self.incidents = [change(i) if i.id == incident_id else i for i in self.incidents]

    def _trim(self) -> None:
        """Bound the list; an open incident is never dropped."""
        extra = len(self.incidents) - INCIDENTS_KEPT
        if extra > 0:
            closed = [i for i in self.incidents if i.closed_at is not None][-extra:]
            drop = {i.id for i in closed}
            self.incidents = [i for i in self.incidents if i.id not in drop]
