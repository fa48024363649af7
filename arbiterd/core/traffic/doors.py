"""What the doors shall do: let in, hold, shed, send to a substitute. One look at every backend a tick.

/v1/route, the documented health URLs and HAProxy all say what is decided here.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.incidents import found
from arbiterd.core.limits import (
    ADOPTED_S,
    FAILBACK_S,
    GATEWAY_DOWN_S,
    GATEWAY_FIRST_S,
    HOLD_MAX_S,
    RETRY_AFTER_MAX_S,
)
from arbiterd.core.memory import brakes
from arbiterd.core.notes import About, Note, Notes, Open
from arbiterd.core.state import DoorState
from arbiterd.core.traffic.evidence import traffic
from arbiterd.core.views import not_accepting, retry_after_s, unreached
from arbiterd.engines import engine_of
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.gateway import Admit, BackendWish, GatewayWish, Traffic
from arbiterd.model.reading import Known
from arbiterd.model.settings import BackendSettings

_DOOR = "door"  # the evidence that tells which
_SOON = (Phase.WAITING, Phase.STARTING, Phase.STOPPING, Phase.DRAINING, Phase.READY)


def wish(facts: Facts) -> tuple[Facts, Notes, GatewayWish]:
    """What the gateway shall do from now on."""
    active, old = facts.settings.active.backends, facts.doors
    here = {name: facts.backends[name] for name in active if name in facts.backends}
    whys = {name: not_accepting(facts, one) for name, one in here.items()}
    able = {name for name, why in whys.items() if not (why or _no_way(facts, here[name]))}
    failover = {
        (rule.from_backend, rule.model): rule.to_backend
        for rule in reversed(facts.settings.failover)
        if rule.from_backend in active and rule.to_backend in able
    }
    doors, made, notes = dict[str, DoorState](), dict[str, BackendWish](), list[Note]()
    for name, backend in here.items():
        wanted, why = active[name], whys[name]
        substituted = any(source == name for source, _ in failover)
        before = old.get(name, DoorState())
        door = _door(
            facts, backend, wanted, why, before, substituted=substituted, others=bool(able)
        )
        doors[name] = before if door == before else door
        notes += _told(facts, name, before, door, why)
        made[name] = _wish(facts, backend, wanted, why, door)
    if doors != old:
        facts = replace(facts, doors=doors)
    return facts, tuple(notes), GatewayWish(made, failover, _adapters(facts))


def _adapters(facts: Facts) -> dict[str, str]:
    """Models that engines tell of and that no settings name: adapters loaded at run time."""
    out: dict[str, str] = {}
    for name, wanted in facts.settings.active.backends.items():
        health = facts.seen.health.get(name)
        told = health.served if health else None
        if isinstance(told, Known):
            known = engine_of(wanted.kind).served_models(wanted)
            for model in told.value:
                if model not in known:
                    out.setdefault(model, name)
    return out


def _door(
    facts: Facts,
    backend: BackendState,
    wanted: BackendSettings,
    why: str,
    old: DoorState,
    *,
    substituted: bool,
    others: bool,
) -> DoorState:
    """The next state of this door. ``why``: no new work is let in. ``others``: some backend takes work;
    while none does, every door answers at once, and clients look elsewhere.
    """
    now = facts.seen.now
    unheard = backend.run.adopted and now - backend.since < ADOPTED_S
    if unheard and backend.phase is Phase.STARTING:
        # It ran before we came: HAProxy's own check guards the door.
        new = replace(old, admit=Admit.UP)
    elif why:
        # The substitute is asked at once; without one, a short wait is better than an error.
        soon = (
            others
            and backend.phase in _SOON
            and not backend.wish.drained
            and not facts.seen.stopping
        )
        short = retry_after_s(facts, backend) <= min(wanted.queue_timeout_s, HOLD_MAX_S)
        admit = Admit.HOLD if soon and short and old.opened else Admit.SHED
        new = replace(old, admit=admit, good_since=None, away=old.opened and substituted)
    else:
        good = old.good_since if old.good_since is not None else now
        away = old.away and substituted and now - good < FAILBACK_S
        admit = Admit.AWAY if away else Admit.UP
        new = replace(old, admit=admit, good_since=good, away=away, opened=True)
    return new if new.admit is old.admit else replace(new, since=now)


def _told(facts: Facts, name: str, old: DoorState, new: DoorState, why: str) -> list[Note]:
    """Every change of a door that has been open before."""
    notes: list[Note] = []
    if not old.opened or facts.seen.stopping:
        return notes
    closed = (Admit.SHED, Admit.HOLD)
    if new.away and not old.away:
        rules = facts.settings.failover
        targets = sorted({r.to_backend for r in rules if r.from_backend == name})
        text = f"{name}: its models are with {', '.join(targets)} now: {why}"
        notes.append(facts.say(EventName.FAILOVER, Severity.WARNING, text, name, reason=why))
    elif old.away and not new.away and not why:
        text = f"{name} has its own models again, well for {FAILBACK_S:g} s"
        notes.append(facts.say(EventName.FAILBACK, Severity.NOTICE, text, name))
    if new.admit in closed and old.admit not in closed:
        text = f"{name}: new requests are refused or held: {why}"
        notes.append(facts.say(EventName.SHED, Severity.NOTICE, text, name, reason=why))
    elif old.admit in closed and new.admit not in closed:
        text = f"{name}: new requests are let in"
        notes.append(facts.say(EventName.UNSHED, Severity.NOTICE, text, name))
    return notes


def _wish(
    facts: Facts, backend: BackendState, wanted: BackendSettings, why: str, door: DoorState
) -> BackendWish:
    advice = next((d.advice for d in facts.settings.degrade if d.from_backend == backend.name), "")
    to = next((d.to_backends for d in facts.settings.degrade if d.from_backend == backend.name), ())
    # A broken way sheds nobody: what HAProxy and the gate can still do, they shall do.
    told = why or _no_way(facts, backend)
    return BackendWish(
        backend=backend.name,
        admit=door.admit,
        accepting=not told,
        why=f"{backend.name}: {told}" if told else "",
        retry_after_s=retry_after_s(facts, backend) if told else 1,
        full_retry_after_s=full_retry_after_s(traffic(facts, backend.name), wanted),
        max_in_flight=brakes.limit(facts, backend.name, wanted.max_in_flight),
        max_queue=wanted.max_queue,
        advice=f"{advice}: {', '.join(to)}" if advice else "",
        version=wanted.version or facts.seen.host.versions.get(backend.name, ""),
        device_bytes=_device_bytes(facts, backend.name),
    )


def _no_way(facts: Facts, backend: BackendState) -> str:
    """Why its door leads nowhere, by the second probe or by HAProxy's checks."""
    ready = backend.phase is Phase.READY
    return broken(backend) or (unreached(facts, backend.name) if ready else "")


def _device_bytes(facts: Facts, name: str) -> int:
    """What its devices hold; 0 while one of them has not been seen."""
    placed = facts.placements.get(name)
    seen = [facts.seen.devices.get(uuid) for uuid in placed.devices] if placed else []
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


def gateway(facts: Facts) -> tuple[Facts, Notes]:
    """Since when the gateway does not serve, and whom clients have called it."""
    seen, now, state = facts.seen.gateway, facts.seen.now, facts.state
    if not seen.enabled:
        return facts, ()
    problem = seen.problem or seen.gate_problem
    since = state.gateway_bad_since
    since = (now if since is None else since) if problem and not facts.seen.stopping else None
    served = state.gateway_served or not problem
    new = seen.unknown_hosts - state.hosts_told
    if not new and (since, served) == (state.gateway_bad_since, state.gateway_served):
        return facts, ()
    notes = (*_blinked(facts, still=since is not None), *_named(facts, new))
    told = state.hosts_told | new
    return facts.having(gateway_bad_since=since, gateway_served=served, hosts_told=told), notes


def wrong(facts: Facts) -> list[Open]:
    """The gateway does not serve, a door leads nowhere, or somebody has its port."""
    seen, now, since = facts.seen.gateway, facts.seen.now, facts.state.gateway_bad_since
    if not seen.enabled:
        return []
    found = [note for backend in facts.backends.values() if (note := _way(facts, backend))]
    grace = GATEWAY_DOWN_S if facts.state.gateway_served else GATEWAY_FIRST_S
    if since is not None and now - since >= grace:
        name, text = EventName.GATEWAY_DOWN, seen.problem or seen.gate_problem
        text = f"the gateway does not serve: {text}"
        found.append(facts.open(name, Severity.CRITICAL, text, About((name,))))
    for door, text in seen.taken_doors.items():
        name, mark = EventName.PORT_TAKEN, (_DOOR, door)
        summary, about = f"the door {door} stays shut: {text}", About((name,), mark=mark)
        found.append(facts.open(name, Severity.ERROR, summary, about, evidence=(mark,)))
    return found


def gateway_over(facts: Facts, _: Incident) -> tuple[EventName, str] | None:
    """It serves again."""
    seen = facts.seen.gateway
    bad = seen.problem or seen.gate_problem or not seen.enabled
    return None if bad else (EventName.RECOVERED, "the gateway serves again")


def way_over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Clients reach it by its door, or it does not run."""
    backend, open_ = facts.backends.get(one.backend), facts.seen.gateway.enabled
    if backend is None or not open_ or (broken(backend) and not facts.seen.stopping):
        return None
    ready = backend.phase is Phase.READY
    text = "answers through its door again" if ready else f"is {backend.phase.value} now"
    return EventName.RECOVERED, f"{backend.name}: {text}"


def taken_over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Nobody else has the door's port; that of a backend is its trouble (core/backend/lifecycle.py)."""
    door, seen = dict(one.evidence).get(_DOOR, ""), facts.seen.gateway
    if not door or door in seen.taken_doors or not seen.enabled:
        return None
    return EventName.RECOVERED, f"the door {door} is open"


def _named(facts: Facts, hosts: frozenset[str]) -> list[Note]:
    """Each unknown name that clients came by, once, with the line that makes it known."""
    notes: list[Note] = []
    for host in sorted(hosts):
        name = re.sub(r"[^a-z0-9_.*-]|:[0-9]*$", "", host).rstrip(".")
        allowed = ", ".join(f'"{one}"' for one in (*facts.settings.gateway.hosts, name))
        text = (
            f"gateway: served a request for the unknown host {host!r}; browsers get 403 for it; "
            f"to allow it, write: [gateway] hosts = [{allowed}]"
        )
        notes.append(facts.say(EventName.UNKNOWN_HOST, Severity.NOTICE, text))
    return notes


def _blinked(facts: Facts, *, still: bool) -> Notes:
    """Too short an absence for an incident: what has ended HAProxy is worth a line all the same."""
    since = facts.state.gateway_bad_since
    if still or since is None or not facts.state.gateway_served or facts.seen.stopping:
        return ()
    if found(facts.incidents, About((EventName.GATEWAY_DOWN,))) is not None:
        return ()
    away_s = facts.seen.now - since
    text = f"gateway: did not serve for {away_s:.1f} s; serves again. No action needed."
    return (facts.say(EventName.GATEWAY_DOWN, Severity.WARNING, text),)


def _way(facts: Facts, backend: BackendState) -> Open | None:
    """One incident per backend whose door leads nowhere; it never touches the engine."""
    since = backend.vitals.door_since
    if since is None or facts.seen.stopping or facts.seen.now - since < GATEWAY_DOWN_S:
        return None
    why, name = broken(backend), EventName.DOOR_BROKEN
    text = f"{backend.name}: {why}"
    return facts.open(name, Severity.ERROR, text, About((name,), backend.name)) if why else None
