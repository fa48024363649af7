"""What the doors shall do: let in, hold, shed, send to a substitute. One look at every backend a tick.

/v1/route, the documented health URLs and HAProxy all say what is decided here.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from arbiterd.core import brakes
from arbiterd.core.desk import Desk
from arbiterd.core.evidence import traffic
from arbiterd.core.limits import (
    ADOPTED_S,
    FAILBACK_S,
    GATEWAY_DOWN_S,
    GATEWAY_FIRST_S,
    HOLD_MAX_S,
    RETRY_AFTER_MAX_S,
)
from arbiterd.core.state import BackendState, DoorState
from arbiterd.core.views import not_accepting, retry_after_s, unreached
from arbiterd.engines import engine_of
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish, Traffic
from arbiterd.model.reading import Known
from arbiterd.model.settings import BackendSettings

_DOOR = "door"  # the evidence that tells which
_SOON = (Phase.WAITING, Phase.STARTING, Phase.STOPPING, Phase.DRAINING, Phase.READY)


def wish(desk: Desk) -> GatewayWish:
    """What the gateway shall do from now on."""
    active = desk.settings.active.backends
    whys = {n: not_accepting(desk, desk.backends[n]) for n in active if n in desk.backends}
    able = {n for n, why in whys.items() if not (why or _no_way(desk, desk.backends[n]))}
    failover = {
        (rule.from_backend, rule.model): rule.to_backend
        for rule in reversed(desk.settings.failover)
        if rule.from_backend in active and rule.to_backend in able
    }
    made = {}
    for name, wanted in active.items():
        backend = desk.backends.get(name)
        if backend is None:
            continue
        substituted = any(source == name for source, _ in failover)
        door = _door(desk, backend, wanted, whys[name], substituted=substituted, others=bool(able))
        made[name] = _wish(desk, backend, wanted, whys[name], door)
    desk.doors = {name: one for name, one in desk.doors.items() if name in active}
    return GatewayWish(made, failover, _adapters(desk))


def _adapters(desk: Desk) -> dict[str, str]:
    """Models that engines tell of and that no settings name: adapters loaded at run time."""
    out: dict[str, str] = {}
    for name, wanted in desk.settings.active.backends.items():
        health = desk.seen.health.get(name)
        told = health.served if health else None
        if isinstance(told, Known):
            known = engine_of(wanted.kind).served_models(wanted)
            for model in told.value:
                if model not in known:
                    out.setdefault(model, name)
    return out


def _door(
    desk: Desk,
    backend: BackendState,
    wanted: BackendSettings,
    why: str,
    *,
    substituted: bool,
    others: bool,
) -> DoorState:
    """The next state of this door, told when it changes. ``why``: no new work is let in. ``others``:
    some backend takes work; while none does, every door answers at once, and clients look elsewhere.
    """
    now, old = desk.seen.now, desk.doors.get(backend.name, DoorState())
    unheard = backend.adopted and now - backend.since < ADOPTED_S
    if unheard and backend.phase is Phase.STARTING:
        new = replace(
            old, admit=Admit.UP
        )  # it ran before we came: HAProxy's own check guards the door
    elif why:
        # The substitute is asked at once; without one, a short wait is better than an error.
        soon = others and backend.phase in _SOON and not backend.held and not desk.seen.stopping
        short = retry_after_s(desk, backend) <= min(wanted.queue_timeout_s, HOLD_MAX_S)
        admit = Admit.HOLD if soon and short and old.opened else Admit.SHED
        new = replace(old, admit=admit, good_since=None, away=old.opened and substituted)
    else:
        good = old.good_since if old.good_since is not None else now
        away = old.away and substituted and now - good < FAILBACK_S
        admit = Admit.AWAY if away else Admit.UP
        new = replace(old, admit=admit, good_since=good, away=away, opened=True)
    if new.admit is not old.admit:
        new = replace(new, since=now)
    _tell(desk, backend.name, old, new, why)
    desk.doors[backend.name] = new
    return new


def _tell(desk: Desk, name: str, old: DoorState, new: DoorState, why: str) -> None:
    if not old.opened or desk.seen.stopping:
        return
    closed = (Admit.SHED, Admit.HOLD)
    targets = {r.to_backend for r in desk.settings.failover if r.from_backend == name}
    if new.away and not old.away:
        text = f"{name}: its models are with {', '.join(sorted(targets))} now: {why}"
        desk.tell(EventName.FAILOVER, Severity.WARNING, text, name, reason=why)
    elif old.away and not new.away and not why:
        text = f"{name} has its own models again, well for {FAILBACK_S:g} s"
        desk.tell(EventName.FAILBACK, Severity.NOTICE, text, name)
    if new.admit in closed and old.admit not in closed:
        text = f"{name}: new requests are refused or held: {why}"
        desk.tell(EventName.SHED, Severity.NOTICE, text, name, reason=why)
    elif old.admit in closed and new.admit not in closed:
        desk.tell(EventName.UNSHED, Severity.NOTICE, f"{name}: new requests are let in", name)


def _wish(
    desk: Desk, backend: BackendState, wanted: BackendSettings, why: str, door: DoorState
) -> BackendWish:
    advice = next((d.advice for d in desk.settings.degrade if d.from_backend == backend.name), "")
    to = next((d.to_backends for d in desk.settings.degrade if d.from_backend == backend.name), ())
    # A broken way sheds nobody: what HAProxy and the gate can still do, they shall do.
    told = why or _no_way(desk, backend)
    return BackendWish(
        backend=backend.name,
        admit=door.admit,
        accepting=not told,
        why=f"{backend.name}: {told}" if told else "",
        retry_after_s=retry_after_s(desk, backend) if told else 1,
        full_retry_after_s=full_retry_after_s(traffic(desk, backend.name), wanted),
        max_in_flight=brakes.limit(desk, backend.name, wanted.max_in_flight),
        max_queue=wanted.max_queue,
        advice=f"{advice}: {', '.join(to)}" if advice else "",
        version=wanted.version or desk.seen.host.versions.get(backend.name, ""),
        device_bytes=_device_bytes(desk, backend.name),
    )


def _no_way(desk: Desk, backend: BackendState) -> str:
    """Why its door leads nowhere, by the second probe or by HAProxy's checks."""
    ready = backend.phase is Phase.READY
    return broken(backend) or (unreached(desk, backend.name) if ready else "")


def _device_bytes(desk: Desk, name: str) -> int:
    """What its devices hold; 0 while one of them has not been seen."""
    placed = desk.placements.get(name)
    seen = [desk.seen.devices.get(uuid) for uuid in placed.devices] if placed else []
    return sum(one.device.capacity_bytes for one in seen if one) if all(seen) else 0


def full_retry_after_s(seen: Traffic | None, wanted: BackendSettings) -> int:
    """When a full queue will have a place: what waits, over the rate at which it is served."""
    if seen is None or seen.latency_ms <= 0:
        return 1
    per_second = max(1, seen.limit or wanted.max_in_flight) * 1000.0 / seen.latency_ms
    return max(1, min(RETRY_AFTER_MAX_S, math.ceil((seen.queued + 1) / per_second)))


def broken(backend: BackendState) -> str:
    """Why clients do not reach this ready backend by its door, "" when they do, or nobody knows yet."""
    sick = backend.phase is not Phase.READY or backend.vitals.door_since is None
    return "" if sick else backend.vitals.door_why


def judge_gateway(desk: Desk) -> None:
    """Incidents of the gateway itself: it does not serve, a door leads nowhere, or somebody has its
    port.
    """
    seen, now = desk.seen.gateway, desk.seen.now
    if not seen.enabled:
        return
    for backend in desk.backends.values():
        _way(desk, backend)
    problem = seen.problem or seen.gate_problem
    since = desk.state.gateway_bad_since
    since = (now if since is None else since) if problem and not desk.seen.stopping else None
    served = desk.state.gateway_served or not problem
    _blinked(desk, still=since is not None)
    if (since, served) != (desk.state.gateway_bad_since, desk.state.gateway_served):
        desk.state = replace(desk.state, gateway_bad_since=since, gateway_served=served)
    grace = GATEWAY_DOWN_S if served else GATEWAY_FIRST_S
    open_ = desk.open_incident("", "", EventName.GATEWAY_DOWN)
    if since is not None and now - since >= grace and not open_:
        text = f"the gateway does not serve: {problem}"
        desk.raise_incident(EventName.GATEWAY_DOWN, Severity.CRITICAL, text)
    elif not problem and open_:
        desk.close_incident(open_.id, EventName.RECOVERED, "the gateway serves again")
    _taken(desk)
    _named(desk)


def _named(desk: Desk) -> None:
    """Tell each unknown name that clients came by once, with the line that makes it known."""
    new = desk.seen.gateway.unknown_hosts - desk.state.hosts_told
    if not new:
        return
    desk.state = replace(desk.state, hosts_told=desk.state.hosts_told | new)
    for host in sorted(new):
        name = re.sub(r"[^a-z0-9_.*-]|:[0-9]*$", "", host).rstrip(".")
        hosts = ", ".join(f'"{one}"' for one in (*desk.settings.gateway.hosts, name))
        text = (
            f"gateway: served a request for the unknown host {host!r}; browsers get 403 for it; "
            f"to allow it, write: [gateway] hosts = [{hosts}]"
        )
        desk.tell(EventName.UNKNOWN_HOST, Severity.NOTICE, text)


def _blinked(desk: Desk, *, still: bool) -> None:
    """Too short an absence for an incident: what has ended HAProxy is worth a line all the same."""
    since = desk.state.gateway_bad_since
    if still or since is None or not desk.state.gateway_served or desk.seen.stopping:
        return
    if desk.open_incident("", "", EventName.GATEWAY_DOWN) is None:
        away_s = desk.seen.now - since
        text = f"gateway: did not serve for {away_s:.1f} s; serves again. No action needed."
        desk.tell(EventName.GATEWAY_DOWN, Severity.WARNING, text)


def _way(desk: Desk, backend: BackendState) -> None:
    """One incident per backend whose door leads nowhere; it never touches the engine."""
    open_ = desk.open_incident(backend.name, "", EventName.DOOR_BROKEN)
    why = "" if desk.seen.stopping else broken(backend)
    since = backend.vitals.door_since
    if why and since is not None and desk.seen.now - since >= GATEWAY_DOWN_S and not open_:
        text = f"{backend.name}: {why}"
        desk.raise_incident(EventName.DOOR_BROKEN, Severity.ERROR, text, backend=backend.name)
    elif open_ and not why:
        ready = backend.phase is Phase.READY
        text = "answers through its door again" if ready else f"is {backend.phase.value} now"
        desk.close_incident(open_.id, EventName.RECOVERED, f"{backend.name}: {text}")


def _taken(desk: Desk) -> None:
    """One incident per taken door, by its name as the incident's subject."""
    doors = desk.seen.gateway.taken_doors
    open_ = {
        dict(one.evidence).get(_DOOR, ""): one
        for one in desk.incidents
        if one.closed_at is None and one.event is EventName.PORT_TAKEN
    }
    open_.pop("", None)  # of a backend's own port
    for door, text in doors.items():
        if door not in open_:
            summary = f"the door {door} stays shut: {text}"
            desk.raise_incident(
                EventName.PORT_TAKEN, Severity.ERROR, summary, evidence=((_DOOR, door),)
            )
    for door, incident in open_.items():
        if door not in doors:
            desk.close_incident(incident.id, EventName.RECOVERED, f"the door {door} is open")
