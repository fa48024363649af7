"""The ladder: what is done before a device overflows, and how it is undone.

Brakes (hold, throttle, freeze) free nothing, act at once and may be stacked. Reclaims (trim, sleep,
restart, stop) give memory back, one at a time per device, mildest that frees enough in time first.

    calm      nothing; brakes are let go
    tight     loads need a margin, those over their caps are throttled, idle models are trimmed when
              memory is really short
    critical  loads and requests of the guilty are held at the first sample; from the second on: trim,
              then sleep, restart or stop of a backend over its cap, and of no other

Foreign memory justifies brakes, trims and an alert: never a signal to a stranger, never the restart
of an innocent. Blind, nothing is done at all (design, section 5).
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import offenders, pressure, reclaim, victim
from arbiterd.core.brakes import brake, thawed
from arbiterd.core.desk import Desk
from arbiterd.core.limits import BYTES_BACK_S, GROWING_BYTES, LEAD_S
from arbiterd.core.placement import headroom_bytes
from arbiterd.core.state import DeviceState, updated
from arbiterd.core.victim import Need
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation, GpuState, Pressure
from arbiterd.model.events import EventName, Severity
from arbiterd.model.pressure import Rung
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size

_RANK = {Pressure.UNKNOWN: 0, Pressure.CALM: 0, Pressure.TIGHT: 1, Pressure.CRITICAL: 2}


def climb(desk: Desk) -> None:
    """One tick of the ladder on every device."""
    for uuid, seen in desk.seen.devices.items():
        if seen.device.mig_enabled:
            continue
        before = desk.state.devices.get(uuid, DeviceState()).pressure
        desk.devices[uuid] = _device(desk, uuid, seen, before)


def _device(desk: Desk, uuid: str, seen: DeviceObservation, before: Pressure) -> DeviceState:
    state = desk.devices[uuid]
    if not state.samples or seen.state is not GpuState.OK:
        # Blind: no pressure actions; brakes stay, traffic goes on; what was ordered is still heard.
        return reclaim.hear(desk, thawed(desk, state))[0]
    if desk.seen.stopping:
        return updated(state, candidates=(), loads_held="")
    offenders.tell(desk, uuid, state)
    state = desk.devices[uuid]
    _tell_band(desk, seen, state, before)
    state = reclaim.follow(desk, uuid, state)
    state = brake(desk, uuid, state)
    if _RANK[state.pressure] == 0:
        return updated(state, candidates=())
    return _reclaim(desk, uuid, seen, state)


def _reclaim(desk: Desk, uuid: str, seen: DeviceObservation, state: DeviceState) -> DeviceState:
    """Rank who could give memory back, and order the best of it when it is time."""
    need = _need(desk, seen, state)
    found = victim.options(desk, uuid, state, need)
    wait = _wait(desk, uuid, state, need)
    chosen = None if wait else victim.choose(found, need)
    state = replace(state, candidates=victim.listed(found, chosen))
    if chosen is None:
        return state
    rung = chosen.candidate.rung
    backend = desk.backends[chosen.candidate.backend]
    wanted = desk.settings.active.backends[backend.name]
    drain = 0.0
    if rung is not Rung.TRIM and backend.phase is not Phase.STARTING:
        # Its streams may end if the card can wait so long: half of the time that is left.
        drain = min(wanted.drain_timeout_s, max(0.0, (need.seconds - LEAD_S) / 2))
        unknown = state.time_to_full_s is None and pressure.grows(state, backend.name)
        drain = 0.0 if drain < 1.0 or unknown else drain
    return reclaim.begin(desk, uuid, state, chosen, drain_s=drain)


def _need(desk: Desk, seen: DeviceObservation, state: DeviceState) -> Need:
    headroom = headroom_bytes(desk.settings.arbiter.headroom_bytes, seen.device)
    free = seen.memory.value.free_bytes if isinstance(seen.memory, Known) else 0
    speed = max(0.0, state.slope or 0.0)
    seconds = state.time_to_full_s if state.time_to_full_s is not None else float("inf")
    critical = state.pressure is Pressure.CRITICAL
    lacking = max(0, headroom - free) + (int(speed * state.lead_s) if critical else 0)
    return Need(max(lacking, GROWING_BYTES), seconds, critical)


def _wait(desk: Desk, uuid: str, state: DeviceState, need: Need) -> str:
    """Why no reclaim is ordered now, "" when one may be."""
    if state.reclaim is not None:
        return "one is in flight"
    if need.critical and not pressure.confirmed(state):
        return "critical by one sample only"
    if not need.critical and need.bytes <= GROWING_BYTES:
        return "memory is short on the books only: loads wait for a margin"
    for backend in desk.backends.values():
        placement = desk.placements.get(backend.name)
        here = uuid in backend.held_bytes or (placement and uuid in placement.devices)
        if not here:
            continue
        late = desk.seen.now - backend.since >= BYTES_BACK_S
        if backend.phase is Phase.STOPPING and not late:
            return f"{backend.name} is giving its memory back"
        if backend.phase is Phase.STARTING and not need.critical:
            return f"{backend.name} is starting"
    if state.releasing >= need.bytes:
        return f"{format_size(state.releasing)} are on their way back"
    return ""


# -- telling -----------------------------------------------------------------------------------------
def _tell_band(desk: Desk, seen: DeviceObservation, state: DeviceState, before: Pressure) -> None:
    """One incident from the first band above calm until calm."""
    new, uuid = state.pressure, seen.device.uuid
    open_ = desk.open_incident("", uuid, EventName.PRESSURE_RISE)
    if _RANK[new] == 0:
        if open_ is not None and new is Pressure.CALM:
            text = f"GPU {seen.device.index}: pressure is calm again: {numbers(seen, state)}"
            desk.close_incident(open_.id, EventName.PRESSURE_CALM, text)
        return
    known = _RANK[new] == _RANK[before] or (before, new) == (Pressure.UNKNOWN, Pressure.TIGHT)
    if open_ is not None and known:
        return
    text = f"GPU {seen.device.index}: pressure is {new.value}: {numbers(seen, state)}"
    severity = Severity.ERROR if new is Pressure.CRITICAL else Severity.WARNING
    if open_ is None:
        evidence = (("holders", offenders.who(seen)),)
        desk.raise_incident(EventName.PRESSURE_RISE, severity, text, gpu=uuid, evidence=evidence)
        return
    name = EventName.PRESSURE_RISE if _RANK[new] > _RANK[before] else EventName.PRESSURE_CALM
    desk.tell(name, severity, text, gpu=uuid, incident=open_.id)


def numbers(seen: DeviceObservation, state: DeviceState) -> str:
    """'180 MiB free, 3.10 GiB beyond what is granted, growing 512 MiB/s, full in 1.2 s'."""
    parts = []
    if isinstance(seen.memory, Known):
        parts.append(f"{format_size(seen.memory.value.free_bytes)} free")
    if state.solvency is not None:
        parts.append(f"solvency {format_size(state.solvency)}")
    if state.excess:
        parts.append(f"{format_size(state.excess)} beyond what is granted")
    if state.slope and state.slope > 0 and state.time_to_full_s is not None:
        parts.append(f"growing {format_size(int(state.slope))}/s")
        parts.append(f"full in {format_duration(state.time_to_full_s)}")
    return ", ".join(parts)
