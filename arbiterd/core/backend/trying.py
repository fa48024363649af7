"""Canaries on trial: after an engine answers and before it is ready, so that nothing else moves on its
device meanwhile. Answered in time and without moving memory, a canary is kept; it is sent later only
when requests that were let in get no answer.
"""

from __future__ import annotations

from dataclasses import replace
from math import nextafter

from arbiterd.core.backend.backend_axes import Canaries
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import TRIAL_MOST_S, TRIAL_MOVED_BYTES, TRIAL_READ_S
from arbiterd.core.notes import Note
from arbiterd.core.records import later
from arbiterd.engines import engine_of
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size


def step(facts: Facts, backend: BackendState) -> tuple[BackendState, bool]:
    """One more step of it, and whether every model has been tried."""
    wanted, found = facts.wanted(backend.name), backend.canaries
    trials = engine_of(wanted.kind).trials if wanted else None
    if wanted is None or trials is None or found.done:
        return backend, True
    models = trials.models(wanted)
    if backend.run.adopted:
        why = "not tried: it was running before this daemon"
        found = replace(found, done=True, without=dict.fromkeys(models, why))
    elif found.asked:
        found = _settle(facts, backend, found)
    if found.loaded_at is None:
        found = replace(found, loaded_at=_answered_at(facts, backend.name))
    if not found.asked and not found.done:
        found = _next(facts, backend, found, models, found.loaded_at or 0.0)
    return backend.having(canaries=found), found.done


def excused(canaries: Canaries, seconds: float) -> Canaries:
    """As if so much time had not passed."""
    return later(canaries, seconds, "asked_at")


def needed(facts: Facts, backend: BackendState) -> bool:
    """Whether this engine's canaries are such, and its progress what its door counts."""
    wanted = facts.wanted(backend.name)
    return wanted is not None and engine_of(wanted.kind).trials is not None


def suspect(facts: Facts, backend: BackendState, stuck_after_s: float) -> Note:
    """Once per silence: nothing is done about it, people may know better."""
    whys = "; ".join(f"{model}: {why}" for model, why in backend.canaries.without.items())
    text = (
        f"{backend.name}: no answer for {format_duration(stuck_after_s)} to the requests let in; not "
        f"restarting: without a canary a slow model looks the same ({whys or 'no model is named'})"
    )
    return facts.say(EventName.STUCK, Severity.WARNING, text, backend.name)


def _answered_at(facts: Facts, name: str) -> float:
    health = facts.seen.health.get(name)
    return health.alive.at if health and isinstance(health.alive, Known) else facts.seen.now


def _next(
    facts: Facts,
    backend: BackendState,
    found: Canaries,
    models: tuple[str, ...],
    loaded_at: float,
) -> Canaries:
    """Ask for the next model's canary, or be done. A list of processes from before its models were there
    would make their bytes look moved by the canary (seen on a busy machine: 4.5 GiB).
    """
    left = [one for one in models if one not in found.kept and one not in found.without]
    if not left:
        return replace(found, done=True)
    held = _held(facts, backend.name, nextafter(loaded_at, 0.0))
    if held is None:
        late = facts.seen.now - loaded_at >= TRIAL_READ_S
        return _none(found, left[0], "its memory could not be read") if late else found
    return replace(found, asked=left[0], asked_at=facts.seen.now, before=held)


def _settle(facts: Facts, backend: BackendState, found: Canaries) -> Canaries:
    """Whether the canary on trial is kept."""
    now, model = facts.seen.now, found.asked
    health = facts.seen.health.get(backend.name)
    trial = health.trial if health else None
    if trial is None or trial.model != model or trial.ended < found.asked_at:
        late = now - found.asked_at >= TRIAL_MOST_S
        return _none(found, model, f"not tried within {TRIAL_MOST_S:g} s") if late else found
    if not trial.ok:
        return _none(found, model, trial.detail)
    held = _held(facts, backend.name, trial.ended)
    if held is None:
        late = now - trial.ended >= TRIAL_READ_S
        return _none(found, model, "its memory could not be read") if late else found
    moved = sum(abs(size - found.before.get(uuid, 0)) for uuid, size in held.items())
    if moved >= TRIAL_MOVED_BYTES:
        return _none(found, model, f"it moved {format_size(moved)} on the card")
    return replace(found, asked="", kept=(*found.kept, model))


def _none(found: Canaries, model: str, why: str) -> Canaries:
    return replace(found, asked="", without={**found.without, model: why})


def _held(facts: Facts, name: str, after: float) -> dict[str, int] | None:
    """Bytes per device that it holds (where the driver lists none: that all hold), by readings newer
    than ``after``; None while there are none.
    """
    out = {}
    placement = facts.placements.get(name)
    for uuid in placement.devices if placement else ():
        seen = facts.seen.devices.get(uuid)
        if seen is None or not isinstance(seen.memory, Known) or seen.memory.at <= after:
            return None
        if not isinstance(seen.processes, Known) or seen.processes.at <= after:
            return None
        sizes = [one.used_bytes for one in seen.processes.value if one.holder == name]
        known = [one.value for one in sizes if isinstance(one, Known)]
        whole = len(known) == len(sizes) and known
        out[uuid] = sum(known) if whole else seen.memory.value.used_bytes
    return out
