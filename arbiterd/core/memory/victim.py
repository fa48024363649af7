"""Who could give memory back, what that would cost him, and why it is or is not he.

The list is made anew in every tick that is not calm, and published: ``arbiterctl why`` prints it.
A backend within its cap is never killed for a neighbour; strangers are not on the list at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from arbiterd.core.backend.backend_state import BackendState, serves
from arbiterd.core.facts import Facts
from arbiterd.core.limits import (
    DISRUPTIVE_MAX,
    DISRUPTIVE_WINDOW_S,
    HOST_RAM_SPARE,
    OVER_S,
    RESTART_AGAIN_S,
    SLEEP_AGAIN_S,
    SLEEP_BYTES_S,
    STOP_AFTER_RESTARTS,
    STROKE_LEFT_S,
    STROKE_S,
    TRIM_AGAIN_S,
    TRIM_FAILED_S,
    TRIM_S,
)
from arbiterd.core.memory import pressure
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.core.memory.gate import loading
from arbiterd.core.traffic.evidence import traffic
from arbiterd.engines import engine_of
from arbiterd.engines.ollama_names import same_model
from arbiterd.model.backend import Phase
from arbiterd.model.health import LoadedModel
from arbiterd.model.pressure import Candidate, NotNow, Rung
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size

_HIS_TURN_COMES = (NotNow.NOT_CRITICAL, NotNow.SPIKE)
_RUNNING = (Phase.READY, Phase.STARTING, Phase.DRAINING)


@dataclass(frozen=True, slots=True)
class Need:
    """What a reclaim must bring: ``bytes``, within ``seconds`` (infinite: no hurry). ``critical``:
    more than a trim is allowed. ``low``: free memory is under the line already.
    """

    bytes: int
    seconds: float
    critical: bool
    low: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate with what is needed to carry it out."""

    candidate: Candidate
    possible: bool
    model: str = ""
    grows: bool = False


def options(facts: Facts, uuid: str, state: DeviceState, need: Need) -> list[Option]:
    """Everything that could be done on this device, mildest first, the best first within a rung."""
    names = [n for n, p in facts.placements.items() if uuid in p.devices and n in facts.backends]
    found = [one for name in names for one in _trims(facts, name, state, need)]
    found.sort(key=lambda one: (not one.possible, -min(one.candidate.bytes_expected, need.bytes)))
    found += sorted(
        (_over(facts, uuid, name, state, need) for name in names),
        key=lambda one: (not one.possible, _rank(facts, state, one)),
    )
    return found


def choose(found: Sequence[Option], need: Need) -> Option | None:
    """The mildest that frees enough in time; when nothing mild does, the guilty one; else what there is.

    While somebody grows beyond his cap, an idle model of somebody else would only buy him seconds:
    then he is the one, and of trims only his own count.
    """
    able = [one for one in found if one.possible]
    harder = [one for one in able if one.candidate.rung is not Rung.TRIM]
    # Not critical yet, or perhaps one stroke: his turn will come. Critical and not to be had (cool-down,
    # bound): others must do.
    growers = {
        one.candidate.backend
        for one in found
        if (one.grows and (one.possible or one.candidate.not_now in _HIS_TURN_COMES))
        or (one.candidate.not_now is NotNow.SPIKE and not need.low)
    }
    trims = [one for one in able if one.candidate.rung is Rung.TRIM]
    if growers:
        trims = [one for one in trims if one.candidate.backend in growers]
    enough = next((one for one in trims if one.candidate.bytes_expected >= need.bytes), None)
    if enough is not None and (need.seconds > TRIM_S or not harder):
        return enough
    if harder:
        return harder[0]
    return trims[0] if trims else None


def listed(found: Sequence[Option], chosen: Option | None) -> tuple[Candidate, ...]:
    """For publishing: the chosen one marked."""
    return tuple(replace(one.candidate, chosen=one is chosen) for one in found)


def recent(times: tuple[float, ...], now: float) -> tuple[float, ...]:
    """Those within the window of the bound."""
    return tuple(at for at in times if now - at < DISRUPTIVE_WINDOW_S)


def resident(facts: Facts, name: str) -> tuple[LoadedModel, ...]:
    """Models an engine says are loaded."""
    health = facts.seen.health.get(name)
    return health.loaded.value if health and isinstance(health.loaded, Known) else ()


# -- trim ------------------------------------------------------------------------------------------
def _trims(facts: Facts, name: str, state: DeviceState, need: Need) -> list[Option]:
    """Idle models of an engine that can unload, least recently used first, the warm one last."""
    wanted, backend = facts.wanted(name), facts.backends[name]
    models = resident(facts, name)
    if wanted is None or not models or not engine_of(wanted.kind).unload_requests(wanted, "x"):
        return []
    warm = engine_of(wanted.kind).warm_model(wanted)
    order = sorted(models, key=lambda m: (same_model(m.name, warm), m.expires_in_s or 0.0))
    seen = traffic(facts, name)
    # What waits at a door that we hold is work as well.
    busy = seen is not None and (seen.in_flight > 0 or seen.queued > 0)
    out = []
    for number, model in enumerate(order):
        size = state.sampled.used.get(name, 0) if len(order) == 1 else model.vram_bytes
        key = f"{Rung.TRIM}:{name}:{model.name}"
        last = state.ladder.done.get(key, float("-inf"))
        failed = state.ladder.done.get(f"failed {key}", float("-inf"))
        why = ""
        if not serves(backend) or backend.warm.pending or loading(facts, name):
            why = f"{name} is {backend.phase.value} or loading"
        elif not model.vram_bytes:
            why = "it is not on the card"
        elif busy and number == len(order) - 1:
            why = "requests are running on it: an unload waits for them"
        elif facts.seen.now - failed < TRIM_FAILED_S:
            why = f"told to go in vain {format_duration(facts.seen.now - failed)} ago"
        elif facts.seen.now - last < TRIM_AGAIN_S:
            why = f"asked {format_duration(facts.seen.now - last)} ago"
        rank = f"idle, number {number + 1} by last use of {len(order)}"
        enough = "enough" if size >= need.bytes else f"{format_size(need.bytes)} are needed"
        text = f"{model.name} of {name}: {rank}, {enough}" if not why else f"{model.name}: {why}"
        out.append(Option(Candidate(name, Rung.TRIM, size, False, text), not why, model.name))
    return out


# -- the guilty -------------------------------------------------------------------------------------
def _over(facts: Facts, uuid: str, name: str, state: DeviceState, need: Need) -> Option:
    """What may be done to one backend beyond trimming."""
    backend, held = facts.backends[name], state.sampled.used.get(name, 0)
    cap = facts.placements[name].cap_bytes
    speed, grows = pressure.slope_of(state, name), pressure.grows(state, name)
    beyond = name in state.sampled.over_since
    listed = state.sampled.seen_at >= 0  # an old list proves nothing
    if held <= cap or not listed or not (beyond or grows or need.critical):
        text = f"within its cap of {format_size(cap)}: never touched for a neighbour"
        return Option(Candidate(name, Rung.RESTART, held, False, text), possible=False)
    over = f"{format_size(held - cap)} over its cap of {format_size(cap)}"
    rung, not_now = _rung(facts, backend, state, need)
    how = (
        f", growing {format_size(int(speed))}/s"
        if speed and grows
        else ", growing"
        if grows
        else ""
    )
    not_now = _not_now(facts, uuid, name, state, need) or not_now
    priority = facts.settings.active.backends[name].priority
    text = f"{over}{how}, priority {priority}"
    if not_now is not None:
        text += f"; not now: {_sentence(not_now, facts, backend, state)}"
    candidate = Candidate(name, rung, held, False, text, not_now)
    return Option(candidate, possible=not_now is None, grows=grows)


def _not_now(facts: Facts, uuid: str, name: str, state: DeviceState, need: Need) -> NotNow | None:
    """Why a backend over its cap is not ended now, whatever the rung; None where it may be."""
    now, cap = facts.seen.now, facts.placements[name].cap_bytes
    over, margin = state.sampled.used.get(name, 0) - cap, pressure.over_margin(cap)
    grows, lately = pressure.grows(state, name), now - state.sampled.moved_at < OVER_S
    if not need.critical:
        return NotNow.NOT_CRITICAL
    if not pressure.is_over(state, name, cap, now) and (grows or lately):
        return NotNow.SPIKE
    young = grows and pressure.over_for(state, name, now) < STROKE_S
    if young and need.seconds > STROKE_LEFT_S and not need.low:
        return NotNow.SPIKE
    if not grows and over <= margin:
        return NotNow.WITHIN_LINE
    if not grows and over <= state.ladder.flat.get(name, 0) + margin:
        return NotNow.FUTILE
    if not grows and _somebody_fills(facts, uuid, name, state):
        return NotNow.OTHERS_GROW
    if facts.backends[name].phase not in _RUNNING:
        return NotNow.PHASE
    return NotNow.ELSEWHERE if _taken_elsewhere(facts, uuid, name) else None


def _sentence(why: NotNow, facts: Facts, backend: BackendState, state: DeviceState) -> str:
    match why:
        case NotNow.NOT_CRITICAL:
            return "the device is not critical: throttled and named only"
        case NotNow.SPIKE:
            return "for a moment only: may be one request's spike, or one allocation"
        case NotNow.PHASE:
            return f"it is {backend.phase.value}"
        case NotNow.WITHIN_LINE:
            return "what an allocator rounds: no reason for a restart"
        case NotNow.FUTILE:
            return "it was ended for that before, and took the same again: its footprint"
        case NotNow.OTHERS_GROW:
            return "it does not grow, and somebody else does"
        case NotNow.ELSEWHERE:
            return "it is being reined in already, for another of its GPUs"
        case NotNow.BUDGET_SPENT:
            window = format_duration(DISRUPTIVE_WINDOW_S)
            return f"{DISRUPTIVE_MAX} interventions within {window}: manual intervention required"
        case NotNow.COOLDOWN:
            since = facts.seen.now - _last_restart(state, backend.name)
            return f"restarted {format_duration(since)} ago"
        case _:
            assert_never(why)


def _somebody_fills(facts: Facts, uuid: str, but: str, state: DeviceState) -> bool:
    """Whether another backend there grows beyond its cap: then the bytes of this one would only feed it."""
    return any(
        name != but
        and uuid in placed.devices
        and state.sampled.used.get(name, 0) > placed.cap_bytes
        and pressure.grows(state, name)
        for name, placed in facts.placements.items()
    )


def _taken_elsewhere(facts: Facts, uuid: str, name: str) -> bool:
    """Whether a sleep or a restart of this backend, on several GPUs, is in flight on another of them."""
    return any(
        other != uuid
        and one.ladder.reclaim is not None
        and one.ladder.reclaim.backend == name
        and one.ladder.reclaim.rung is not Rung.TRIM
        for other, one in facts.devices.items()
    )


def _rung(
    facts: Facts, backend: BackendState, state: DeviceState, need: Need
) -> tuple[Rung, NotNow | None]:
    """(sleep, restart or stop, why not now)."""
    now, name = facts.seen.now, backend.name
    if len(recent(state.ladder.disruptive, now)) >= DISRUPTIVE_MAX:
        return Rung.RESTART, NotNow.BUDGET_SPENT
    if _can_sleep(facts, backend, state, need):
        return Rung.SLEEP, None
    restarts = recent(state.ladder.restarts.get(name, ()), now)
    rung = Rung.STOP if len(restarts) >= STOP_AFTER_RESTARTS else Rung.RESTART
    cooling = now - _last_restart(state, name) < RESTART_AGAIN_S
    return rung, NotNow.COOLDOWN if cooling else None


def _last_restart(state: DeviceState, name: str) -> float:
    return max(
        state.ladder.done.get(f"{one}:{name}", float("-inf")) for one in (Rung.RESTART, Rung.STOP)
    )


def _can_sleep(facts: Facts, backend: BackendState, state: DeviceState, need: Need) -> bool:
    wanted, now = facts.wanted(backend.name), facts.seen.now
    if wanted is None or backend.phase is not Phase.READY or backend.vitals.sick_since is not None:
        return False
    if not engine_of(wanted.kind).sleep_requests(wanted):
        return False
    if now - state.ladder.done.get(f"{Rung.SLEEP}:{backend.name}", float("-inf")) < SLEEP_AGAIN_S:
        return False
    held = state.sampled.used.get(backend.name, 0)
    ram = facts.seen.host.ram_free_bytes
    if ram < held + HOST_RAM_SPARE:
        return False
    return need.seconds > held / SLEEP_BYTES_S + wanted.drain_timeout_s


def _rank(facts: Facts, state: DeviceState, option: Option) -> tuple[bool, int, int]:
    """Who grows first, then who is over its cap by most, then the lowest priority."""
    name = option.candidate.backend
    wanted, cap = facts.wanted(name), facts.placements[name].cap_bytes
    over = max(0, state.sampled.used.get(name, 0) - cap)
    return (not option.grows, -over, wanted.priority if wanted else 0)
