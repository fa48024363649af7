"""The ladder: what is done before a device overflows, and how it is undone.

Brakes (hold, throttle, freeze) free nothing, act at once and may be stacked. Reclaims (trim, sleep,
restart, stop) give memory back, one at a time per device, mildest that frees enough in time first.

    calm      nothing; brakes are let go
    tight     loads need a margin, those that grow beyond their caps by requests are throttled, idle
              models are trimmed when memory is really short
    critical  loads and requests of the guilty are held at the first sample; from the second on: trim,
              then sleep, restart or stop of a backend over its cap, and of no other

Foreign memory justifies brakes, trims and an alert: never a signal to a stranger, never the restart
of an innocent. Blind, nothing is done at all (design, section 5).
"""

from __future__ import annotations

from arbiterd.core.facts import Facts
from arbiterd.core.incidents import found
from arbiterd.core.limits import BYTES_BACK_S, GROWING_BYTES, LEAD_S, SLOPE_MIN
from arbiterd.core.memory import brakes, offenders, pressure, reclaim, victim
from arbiterd.core.memory.device_state import UNSEEN, DeviceState
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.slope import slope
from arbiterd.core.memory.victim import Need
from arbiterd.core.notes import About, Notes, Open
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation, GpuState, Pressure
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.pressure import Rung
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size

_RANK = {Pressure.UNKNOWN: 0, Pressure.CALM: 0, Pressure.TIGHT: 1, Pressure.CRITICAL: 2}


def wrong(facts: Facts) -> list[Open]:
    """Devices under pressure, and who is over a bound there."""
    open_: list[Open] = []
    for uuid, seen in facts.seen.devices.items():
        state = facts.devices[uuid]
        if offenders.judged(facts, uuid, state):
            open_ += (*offenders.wrong(facts, uuid, state), *_band(facts, seen, state))
    return open_


def climb(facts: Facts) -> tuple[Facts, Notes]:
    """One tick of the ladder on every device."""
    notes: Notes = ()
    for uuid, seen in facts.seen.devices.items():
        if not seen.device.mig_enabled:
            facts, said = _device(facts, uuid, seen)
            notes = (*notes, *said)
    return facts, notes


def _device(facts: Facts, uuid: str, seen: DeviceObservation) -> tuple[Facts, Notes]:
    state = facts.devices[uuid]
    if not state.sampled.count or seen.state is not GpuState.OK:
        # Blind: no pressure actions; brakes stay, traffic goes on; what was ordered is still heard.
        state, thawed = brakes.thawed(facts, state)
        state, heard, _ = reclaim.hear(facts, state)
        return facts.put_device(uuid, state), (*thawed, *heard)
    if facts.seen.stopping:
        return facts.put_device(uuid, _still(state)), ()
    followed = reclaim.follow(facts, uuid, state)
    if followed.backend is not None:
        facts = facts.put(followed.backend)
    state, braked = brakes.brake(facts, uuid, followed.device)
    notes = (*followed.notes, *braked)
    if _RANK[state.sampled.pressure] == 0:
        return facts.put_device(uuid, state.having(ladder=state.ladder.ranked(()))), notes
    facts, ordered = _reclaim(facts, uuid, seen, state)
    return facts, (*notes, *ordered)


def _still(state: DeviceState) -> DeviceState:
    """Nothing is ordered any more: the daemon ends."""
    return state.having(ladder=state.ladder.ranked(()).hold_loads(""))


def _reclaim(
    facts: Facts, uuid: str, seen: DeviceObservation, state: DeviceState
) -> tuple[Facts, Notes]:
    """Rank who could give memory back, and order the best of it when it is time."""
    need = _need(facts, seen, state)
    options = victim.options(facts, uuid, state, need)
    wait = _wait(facts, uuid, state, need)
    chosen = None if wait else victim.choose(options, need)
    state = state.having(ladder=state.ladder.ranked(victim.listed(options, chosen)))
    if chosen is None:
        return facts.put_device(uuid, state), ()
    rung = chosen.candidate.rung
    backend = facts.backends[chosen.candidate.backend]
    wanted = facts.settings.active.backends[backend.name]
    drain = 0.0
    if rung is not Rung.TRIM and backend.phase is not Phase.STARTING:
        # Its streams may end if the card can wait so long: half of the time that is left.
        drain = min(wanted.drain_timeout_s, max(0.0, (need.seconds - LEAD_S) / 2))
        unknown = state.sampled.time_to_full_s is None and pressure.grows(state, backend.name)
        drain = 0.0 if drain < 1.0 or unknown else drain
    begun = reclaim.begin(facts, uuid, state, chosen, drain_s=drain)
    facts = facts.put(begun.backend or backend).put_device(uuid, begun.device)
    return facts, begun.notes


def _need(facts: Facts, seen: DeviceObservation, state: DeviceState) -> Need:
    headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
    free = seen.memory.value.free_bytes if isinstance(seen.memory, Known) else 0
    speed = max(0.0, state.sampled.slope or 0.0)
    critical = state.sampled.pressure is Pressure.CRITICAL
    seconds = (
        state.sampled.time_to_full_s if state.sampled.time_to_full_s is not None else float("inf")
    )
    if critical:
        # Growth within a cap is planned and in no excess: of the time that is left it takes its part.
        falls = -(slope(state.sampled.frees) or 0.0)
        seconds = min(seconds, free / falls) if falls > SLOPE_MIN else seconds
    lacking = max(0, headroom - free) + (int(speed * state.ladder.lead_s) if critical else 0)
    low = free < pressure.critical_free_bytes(headroom)
    return Need(max(lacking, GROWING_BYTES), seconds, critical, low)


def _wait(facts: Facts, uuid: str, state: DeviceState, need: Need) -> str:
    """Why no reclaim is ordered now, "" when one may be."""
    if state.ladder.reclaim is not None:
        return "one is in flight"
    if need.critical and not pressure.confirmed(state):
        return "critical by one sample only"
    if not need.critical and need.bytes <= GROWING_BYTES:
        return "memory is short on the books only: loads wait for a margin"
    for backend in facts.backends.values():
        placement = facts.placements.get(backend.name)
        here = uuid in backend.run.held or (placement and uuid in placement.devices)
        if not here:
            continue
        late = facts.seen.now - backend.since >= BYTES_BACK_S
        if backend.phase is Phase.STOPPING and not late:
            return f"{backend.name} is giving its memory back"
        if backend.phase is Phase.STARTING and not need.critical:
            return f"{backend.name} is starting"
    if state.sampled.releasing >= need.bytes:
        return f"{format_size(state.sampled.releasing)} are on their way back"
    return ""


# -- telling -----------------------------------------------------------------------------------------
def _band(facts: Facts, seen: DeviceObservation, state: DeviceState) -> tuple[Open, ...]:
    """One incident from the first band above calm until calm; a change of band is told within it."""
    new, uuid = state.sampled.pressure, seen.device.uuid
    if _RANK[new] == 0:
        return ()
    before = facts.before.devices.get(uuid, UNSEEN).sampled.pressure
    about = About((EventName.PRESSURE_RISE,), gpu=uuid)
    known = _RANK[new] == _RANK[before] or (before, new) == (Pressure.UNKNOWN, Pressure.TIGHT)
    if known and found(facts.incidents, about) is not None:
        return ()
    text = f"GPU {seen.device.index}: pressure is {new.value}: {numbers(seen, state)}"
    severity = Severity.ERROR if new is Pressure.CRITICAL else Severity.WARNING
    rises = _RANK[new] > _RANK[before]
    name = EventName.PRESSURE_RISE if rises else EventName.PRESSURE_CALM
    moved = None if known else facts.say(name, severity, text, about=about, gpu=uuid)
    evidence = (("holders", offenders.who(seen)),)
    rise = EventName.PRESSURE_RISE
    return (facts.open(rise, severity, text, about, evidence=evidence, otherwise=moved),)


def over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Calm again."""
    state = facts.device(one.gpu)
    if state.sampled.pressure is not Pressure.CALM or not offenders.judged(facts, one.gpu, state):
        return None
    seen = facts.seen.devices[one.gpu]
    text = f"GPU {seen.device.index}: pressure is calm again: {numbers(seen, state)}"
    return EventName.PRESSURE_CALM, text


def numbers(seen: DeviceObservation, state: DeviceState) -> str:
    """'180 MiB free, 3.10 GiB beyond what is granted, growing 512 MiB/s, full in 1.2 s'."""
    parts = []
    if isinstance(seen.memory, Known):
        parts.append(f"{format_size(seen.memory.value.free_bytes)} free")
    if state.sampled.solvency is not None:
        parts.append(f"solvency {format_size(state.sampled.solvency)}")
    if state.sampled.excess:
        parts.append(f"{format_size(state.sampled.excess)} beyond what is granted")
    if state.sampled.slope and state.sampled.slope > 0 and state.sampled.time_to_full_s is not None:
        parts.append(f"growing {format_size(int(state.sampled.slope))}/s")
        parts.append(f"full in {format_duration(state.sampled.time_to_full_s)}")
    return ", ".join(parts)
