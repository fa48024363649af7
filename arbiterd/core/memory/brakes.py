"""Brakes: hold, throttle, freeze. They free nothing, act at once, and buy time for a reclaim.

Loads are held first, then requests of a backend that grows beyond its cap; with none over a cap, of the
lowest priority among those that requests make grow now. Holding an engine with a fixed pool frees nothing
and is not done (facts/engines.md, 3.6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from arbiterd.core.facts import Facts
from arbiterd.core.limits import (
    CALM_S,
    CRITICAL_LEFT_S,
    FREEZE_EVERY_S,
    FREEZE_S,
    MOVED_FOR_S,
    THROTTLE_EVERY_S,
    UNTHROTTLE_EVERY_S,
)
from arbiterd.core.memory import pressure
from arbiterd.core.memory.device_state import Braked, DeviceState
from arbiterd.core.memory.slope import last_step
from arbiterd.core.notes import About, Heard, Note, Notes, Order
from arbiterd.core.traffic.evidence import pool_refusals
from arbiterd.engines import engine_of
from arbiterd.model.actions import FreezeBackend
from arbiterd.model.backend import Phase
from arbiterd.model.devices import Pressure
from arbiterd.model.events import EventName, Severity
from arbiterd.model.pressure import NotNow
from arbiterd.quantities import format_size

_FREE = Braked()


def brake(facts: Facts, uuid: str, state: DeviceState) -> tuple[DeviceState, Notes]:
    """The brakes of this device for this tick."""
    state = state.having(ladder=state.ladder.hold_loads(_loads(facts, uuid, state)))
    names = [n for n, p in facts.placements.items() if uuid in p.devices and n in facts.backends]
    if (
        state.sampled.pressure is Pressure.CALM
        and not state.ladder.braked
        and not pool_refusals(facts, names)
    ):
        return state, ()
    held = _whom_to_hold(facts, uuid, state, names)
    braked, notes = dict[str, Braked](), list[Note]()
    for name in names:
        old = state.ladder.braked.get(name, _FREE)
        new, throttled = _throttle(facts, uuid, state, name, replace(old, hold=held.get(name, "")))
        new, frozen = _freeze(facts, uuid, state, name, new)
        notes += (*throttled, *frozen)
        lately = facts.seen.now - new.frozen_at < FREEZE_EVERY_S
        if lately or new != replace(_FREE, frozen_at=new.frozen_at):
            braked[name] = new
    return state.having(ladder=state.ladder.brake(braked)), tuple(notes)


def thawed(facts: Facts, state: DeviceState) -> tuple[DeviceState, Notes]:
    """Freezes that have ended while the device cannot be read: an outcome comes only once."""
    ended = {name: _ended(facts, one) for name, one in state.ladder.braked.items()}
    notes = tuple(note for _, heard in ended.values() for note in heard)
    braked = {name: one for name, (one, _) in ended.items()}
    return state.having(ladder=state.ladder.brake(braked)), notes


def handed_over(braked: Mapping[str, Braked]) -> dict[str, Braked]:
    """As the next daemon finds them: it judges anew whom to hold."""
    return {name: replace(one, hold="", freezing="") for name, one in braked.items()}


def held(facts: Facts, name: str) -> str:
    """Why new requests of this backend are held, "" when they are not."""
    for state in facts.devices.values():
        one = state.ladder.braked.get(name)
        if one is not None and one.hold:
            return one.hold
    return ""


def held_for_s(facts: Facts, name: str) -> float:
    """How long such a hold is expected to last: a reclaim's lead time, or the dwell of calm."""
    for state in facts.devices.values():
        if name in state.ladder.braked and state.ladder.braked[name].hold:
            return state.ladder.lead_s if state.ladder.reclaim else CALM_S
    return 1.0


def limit(facts: Facts, name: str, most: int) -> int:
    """Requests in flight that it may have now."""
    limits = [
        one.limit
        for state in facts.devices.values()
        if (one := state.ladder.braked.get(name)) is not None and one.limit is not None
    ]
    return min([most, *limits])


# -- hold --------------------------------------------------------------------------------------------
def _loads(facts: Facts, uuid: str, state: DeviceState) -> str:
    """Why no model may be loaded there at all; while merely tight a load needs a margin instead."""
    index = facts.seen.devices[uuid].device.index
    if state.sampled.pressure is Pressure.CRITICAL:
        return f"GPU {index} is critical"
    if state.ladder.reclaim is not None:
        return f"memory of GPU {index} is being taken back ({state.ladder.reclaim.rung})"
    grow = state.sampled.excess and pressure.grows(state, pressure.EXCESS)
    if state.sampled.pressure is Pressure.TIGHT and grow:
        return f"GPU {index} is tight and more is being taken"
    return ""


def _whom_to_hold(
    facts: Facts, uuid: str, state: DeviceState, names: Sequence[str]
) -> dict[str, str]:
    """Backends whose new requests are held, each with its reason. Who was held stays so while it
    is critical and something moves: a door must not flap with every sample.
    """
    target = state.ladder.reclaim.backend if state.ladder.reclaim else ""
    out = {}
    if (
        target in names
        and state.ladder.reclaim is not None
        and state.sampled.pressure is not Pressure.CALM
    ):
        rung = state.ladder.reclaim.rung
        out = {target: f"its memory is being taken back ({rung})"}
    if state.sampled.pressure is not Pressure.CRITICAL:
        return out
    index = facts.seen.devices[uuid].device.index
    caps = {name: facts.placements[name].cap_bytes for name in names}
    guilty = [n for n in names if pressure.is_over(state, n, caps[n], facts.seen.now)]
    for name in guilty:
        if not _growing(facts, state, name):
            continue  # its requests take nothing: holding them would free nothing
        over = format_size(state.sampled.used.get(name, 0) - caps[name])
        out[name] = f"GPU {index} is critical and {name} is {over} over its cap"
    if (
        not guilty
        and state.sampled.alarms
        and state.ladder.reclaim is None
        and not state.sampled.releasing
    ):
        lowest = _lowest(facts, state, names)
        if lowest:
            out[lowest] = f"GPU {index} is critical: what {lowest} may still take is not there"
    on = state.ladder.reclaim is not None or _moves(facts, state)
    for name in names:
        if (
            on
            and (old := state.ladder.braked.get(name)) is not None
            and old.hold
            and name not in out
        ):
            out[name] = old.hold
    return out


def _moves(facts: Facts, state: DeviceState) -> bool:
    """Whether what nobody was granted has moved lately."""
    return facts.seen.now - state.sampled.moved_at < MOVED_FOR_S


def _growing(facts: Facts, state: DeviceState, name: str) -> bool:
    return pressure.grows(state, name) or (
        last_step(state.sampled.windows.get(name, ())) > 0 and _moves(facts, state)
    )


def _lowest(facts: Facts, state: DeviceState, names: Sequence[str]) -> str:
    """Of those that requests make grow now. What an engine loads on demand is held as a load: requests to
    a model that is resident take nothing.
    """
    active = facts.settings.active.backends
    growable = [
        n
        for n in names
        if facts.backends[n].phase is Phase.READY
        and engine_of(active[n].kind).grows(active[n])
        and not engine_of(active[n].kind).unload_requests(active[n], "")
        and (pressure.grows(state, n) or last_step(state.sampled.windows.get(n, ())) > 0)
    ]
    return min(growable, key=lambda n: (active[n].priority, n), default="")


# -- throttle ----------------------------------------------------------------------------------------
def _throttle(
    facts: Facts, uuid: str, state: DeviceState, name: str, old: Braked
) -> tuple[Braked, Notes]:
    """Halved while it grows beyond its cap by its requests, or its own pool is full; one more again while
    neither is so. A fixed pool is not throttled: that would free nothing.
    """
    wanted, now = facts.settings.active.backends[name], facts.seen.now
    most, cap = wanted.max_in_flight, facts.placements[name].cap_bytes
    serves = facts.backends[name].phase is not Phase.STARTING
    over = (
        serves
        and state.sampled.pressure is not Pressure.CALM
        and engine_of(wanted.kind).grows(wanted)
    )
    over = over and _growing(facts, state, name) and pressure.is_over(state, name, cap, now)
    full = bool(pool_refusals(facts, [name]))
    current = most if old.limit is None else min(old.limit, most)
    if over or full:
        if now - old.moved_at < THROTTLE_EVERY_S or current <= 1:
            return (replace(old, limit=current) if old.limit is not None else old), ()
        lowered = max(1, current // 2)
        why = "its own pool is full" if full else "it is over its cap"
        text = f"{name}: {lowered} instead of {current} requests at a time: {why}"
        said = facts.say(EventName.THROTTLE, Severity.WARNING, text, name, gpu=uuid, reason=why)
        return replace(old, limit=lowered, moved_at=now), (said,)
    waits = old.limit is None or now - old.moved_at < UNTHROTTLE_EVERY_S
    if waits or state.sampled.pressure is Pressure.CRITICAL:
        return old, ()
    raised = current + 1
    if raised < most:
        return replace(old, limit=raised, moved_at=now), ()
    text = f"{name}: no longer throttled, {most} requests at a time"
    said = facts.say(EventName.UNTHROTTLE, Severity.NOTICE, text, name, gpu=uuid)
    return replace(old, limit=None, moved_at=now), (said,)


# -- freeze ------------------------------------------------------------------------------------------
def _freeze(
    facts: Facts, uuid: str, state: DeviceState, name: str, old: Braked
) -> tuple[Braked, Notes]:
    """Stop a runaway for a moment while something else gives its memory back. A kill needs no freeze:
    it is for a backend that may not be killed now, or for bytes that are on their way.
    """
    if old.freezing:
        return _ended(facts, old)
    if not _may_freeze(facts, state, name, old):
        return old, ()
    reason = f"it would fill the card in {state.sampled.time_to_full_s:.1f} s"
    action = FreezeBackend(facts.action_id("freeze", name), name, uuid, reason, FREEZE_S)
    about = About((EventName.PRESSURE_RISE,), gpu=uuid)
    text = f"{name}: frozen for {FREEZE_S:g} s: {reason}"
    said = facts.say(
        EventName.FREEZE, Severity.WARNING, text, name, about, gpu=uuid, action=action.id
    )
    return replace(old, freezing=action.id, frozen_at=facts.seen.now), (Order(action, about), said)


def _may_freeze(facts: Facts, state: DeviceState, name: str, old: Braked) -> bool:
    now, backend = facts.seen.now, facts.backends[name]
    if not facts.seen.can_freeze or not old.hold or not state.ladder.braked.get(name, _FREE).hold:
        return False  # held at the gateway first
    if not pressure.confirmed(state) or now - old.frozen_at < FREEZE_EVERY_S:
        return False
    single = len(facts.placements[name].devices) == 1  # never a rank of a tensor-parallel group
    if backend.phase is not Phase.READY or not single or not pressure.grows(state, name):
        return False
    others = state.ladder.reclaim is not None and state.ladder.reclaim.backend != name
    if not (others or state.sampled.releasing or _may_not_be_killed(state, name)):
        return False
    to_full = state.sampled.time_to_full_s
    return to_full is not None and to_full <= state.ladder.lead_s + CRITICAL_LEFT_S


def _ended(facts: Facts, old: Braked) -> tuple[Braked, Notes]:
    """Without its freeze, once that has ended."""
    outcome = facts.outcome_of(old.freezing)
    if outcome is None:
        return old, ()
    return replace(old, freezing=""), (Heard(outcome),)


def _may_not_be_killed(state: DeviceState, name: str) -> bool:
    """It is over its cap and was a candidate, but not now (cool-down, bound)."""
    return any(
        one.backend == name and one.not_now not in (None, NotNow.SPIKE)
        for one in state.ladder.candidates
    )
