"""Sleep and wake of an engine that can (vLLM with ``sleep = true``): drained, asleep, verified; and
back: room, wake, an answer.

/health says 200 throughout, and requests to a sleeper hang, so nothing is let in until a canary has
come back. A sleep or wake that fails leaves the engine in no known state: it is restarted
(facts/engines.md, 3.4).
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.backend.backend_axes import AWAKE, Sleep, SleepStage
from arbiterd.core.backend.backend_state import (
    LADDER,
    After,
    BackendState,
    DrainCause,
    serves,
)
from arbiterd.core.backend.failing import fail, give_back
from arbiterd.core.backend.judge import fresh, must_answer, unasked
from arbiterd.core.backend.planning import engine_url
from arbiterd.core.facts import Ask, Facts, Step
from arbiterd.core.limits import (
    BYTES_BACK_PINNED_S,
    FRESH_SAMPLES,
    WAKE_CHECK_S,
    WAKE_LOOK_S,
    WAKE_MARGIN_BYTES,
)
from arbiterd.core.memory import pressure
from arbiterd.core.memory.gate import beside_hung, memory_event
from arbiterd.core.notes import Heard, Notes, Order
from arbiterd.engines import engine_of
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.actions import SleepBackend, WakeBackend
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known
from arbiterd.model.settings import Settings
from arbiterd.quantities import format_duration, format_size

_MINIMUM = 0.3  # of what it held: less freed is no sleep


def able(settings: Settings, name: str) -> str:
    """Why this backend cannot be put to sleep, "" when it can."""
    wanted = settings.active.backends.get(name)
    if wanted is None:
        return f"there is no backend {name} in mode {settings.mode}"
    if not engine_of(wanted.kind).sleep_requests(wanted):
        return f"{name} cannot sleep: only vLLM does, with sleep = true in [backends.{name}]"
    return ""


def ask(facts: Facts, backend: BackendState, by: str, drain_s: float) -> BackendState:
    """Drain, then sleep; unchanged where it does not serve."""
    if not serves(backend):
        return backend
    sleep = Sleep(by=by, at=facts.seen.now, held=dict(backend.run.held))
    leaves = backend.leave(After.SLEEPING, facts.seen.now + drain_s, DrainCause.SLEEP)
    changed = leaves.having(sleep=sleep)
    return facts.enter(changed, Phase.DRAINING, f"is put to sleep by {by}")


def call_back(sleep: Sleep, *, wake: bool = True) -> Sleep:
    """It is to wake, or to sleep on."""
    return replace(sleep, wake=wake)


def taken_over(sleep: Sleep, now: float) -> Sleep:
    """A wake that was under way is asked for again: waking what is awake does no harm. Whether a sleep
    that was under way has worked, its bytes tell.
    """
    if sleep.stage in (SleepStage.WAKING, SleepStage.CHECKING):
        return replace(sleep, stage=SleepStage.ASLEEP, wake=True)
    return replace(sleep, at=now) if sleep.stage is SleepStage.FALLING else sleep


def fall(facts: Facts, backend: BackendState) -> Step:
    """Drained: tell it."""
    wanted = facts.settings.active.backends[backend.name]
    action = SleepBackend(
        id=facts.action_id("sleep", backend.name),
        backend=backend.name,
        gpu=facts.gpu_of(backend.name),
        reason=backend.reason,
        url=engine_url(facts.settings, wanted),
        requests=engine_of(wanted.kind).sleep_requests(wanted),
    )
    held = dict(backend.run.held)
    sleep = replace(backend.sleep, stage=SleepStage.FALLING, at=facts.seen.now, held=held)
    vitals = unasked(backend.vitals)  # a request to a sleeper hangs
    changed = backend.due(None).ordered(action.id, sleep=sleep, vitals=vitals)
    falls = facts.enter(changed, Phase.SLEEPING, f"falls asleep, asked by {sleep.by}")
    return Step(falls, (Order(action, bytes_expected=sum(held.values())),))


def busy(backend: BackendState) -> bool:
    """Memory moves: it falls asleep or wakes."""
    return backend.sleep.stage in (SleepStage.FALLING, SleepStage.WAKING)


def step(facts: Facts, backend: BackendState) -> Step:
    """One tick of the phase ``sleeping``."""
    match backend.sleep.stage:
        case SleepStage.FALLING:
            return _falling(facts, backend)
        case SleepStage.WAKING:
            return _waking(facts, backend)
        case SleepStage.CHECKING:
            return _checking(facts, backend)
        case _:
            wakes = backend.sleep.wake or _calm_again(facts, backend)
            return Step(backend, ask=Ask.WAKE if wakes else None)


def _falling(facts: Facts, backend: BackendState) -> Step:
    outcome = facts.outcome_of(backend.pending)
    heard: Notes = ()
    if outcome is not None:
        heard = (Heard(outcome),)
        if not outcome.ok:
            return _broken(facts, backend, f"sleep failed: {outcome.detail}").after(heard)
        sleep = replace(backend.sleep, at=facts.seen.now)
        backend = backend.heard(sleep=sleep)
    freed = None if backend.pending else _freed(facts, backend)
    if freed is None:
        return Step(backend, heard)
    back, held = sum(freed.values()), sum(backend.sleep.held.values())
    size = format_size(back)
    if back < _MINIMUM * held:
        if facts.seen.now - backend.sleep.at < BYTES_BACK_PINNED_S:
            return Step(backend, heard)
        text = f"it says it sleeps, but only {size} of {format_size(held)} are back"
        return _broken(facts, backend, text).after(heard)
    sleep = replace(backend.sleep, stage=SleepStage.ASLEEP, at=facts.seen.now, freed=freed)
    reason = f"asleep, put there by {sleep.by}; {size} given back"
    said = facts.say(
        EventName.SLEEP,
        Severity.NOTICE,
        f"{backend.name}: asleep, {size} of {format_size(held)} given back; asked by {sleep.by}",
        backend.name,
        bytes_expected=held,
        bytes_freed=back,
    )
    asleep = facts.enter(backend.having(sleep=sleep), Phase.SLEEPING, reason)
    return Step(asleep, (*heard, said))


def _freed(facts: Facts, backend: BackendState) -> dict[str, int] | None:
    """Bytes back per device by samples newer than the answer, None while there are none."""
    out = {}
    for uuid, held in backend.sleep.held.items():
        state = facts.device(uuid)
        if state.sampled.seen_at <= backend.sleep.at:
            return None
        out[uuid] = max(0, held - state.sampled.used.get(backend.name, 0) - state.sampled.releasing)
    return out


def wake(facts: Facts, backend: BackendState) -> Step:
    """Wake it, or keep why that must wait."""
    why = _no_room(facts, backend)
    if why and _outgrew(facts, backend):
        text = (
            f"held more than its cap when it fell asleep, so it cannot wake ({why}): started anew"
        )
        return give_back(facts, backend, After.WAITING, text, grace_s=0.0)
    if why:
        return Step(facts.enter(backend, Phase.SLEEPING, f"is to wake: {why}"))
    wanted = facts.settings.active.backends[backend.name]
    action = WakeBackend(
        id=facts.action_id("wake", backend.name),
        backend=backend.name,
        gpu=facts.gpu_of(backend.name),
        reason="waking",
        url=engine_url(facts.settings, wanted),
        requests=engine_of(wanted.kind).wake_requests(wanted),
    )
    sleep = replace(backend.sleep, stage=SleepStage.WAKING, at=facts.seen.now)
    changed = backend.ordered(action.id, sleep=sleep)
    return Step(facts.enter(changed, Phase.SLEEPING, "waking"), (Order(action),))


def _calm_again(facts: Facts, backend: BackendState) -> bool:
    """The ladder's sleepers come back by themselves."""
    if backend.sleep.by != LADDER:
        return False
    return all(facts.device(uuid).sampled.pressure is Pressure.CALM for uuid in backend.sleep.held)


def _outgrew(facts: Facts, backend: BackendState) -> bool:
    """On a calm card it lacks the room only for what it held beyond its cap: that never comes back, and
    a fresh process needs no more than the cap.
    """
    for uuid, freed in backend.sleep.freed.items():
        seen, state = facts.seen.devices.get(uuid), facts.device(uuid)
        calm = (
            state.sampled.pressure is Pressure.CALM
            and memory_event(facts, uuid, backend.name) is None
        )
        if seen is None or not isinstance(seen.memory, Known) or not calm:
            continue
        over = backend.sleep.held[uuid] > facts.placements[backend.name].cap_bytes
        if over and seen.memory.value.free_bytes < freed + WAKE_MARGIN_BYTES:
            return True
    return False


def _no_room(facts: Facts, backend: BackendState) -> str:
    """Why it may not wake now: no wakes blind, beside another memory event, or without room."""
    for uuid, freed in backend.sleep.freed.items():
        seen, state = facts.seen.devices.get(uuid), facts.device(uuid)
        if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
            return "its GPU cannot be read"
        if state.sampled.count < FRESH_SAMPLES or state.fault.text:
            return state.fault.text or "too few fresh samples"
        event = memory_event(facts, uuid, backend.name)
        if event is not None:
            return str(event)
        booked, _ = beside_hung(facts, uuid, backend.name)
        need, free = freed + booked + WAKE_MARGIN_BYTES, seen.memory.value.free_bytes
        if free < need:
            return f"needs {format_size(need)} free, {format_size(free)} is"
        if free - need < pressure.growth(state) * WAKE_LOOK_S:
            return f"GPU {seen.device.index} fills, and would be full before it is awake"
        if state.sampled.pressure is Pressure.CRITICAL:
            return f"GPU {seen.device.index} is critical"
        if state.ladder.reclaim is not None:
            return f"memory of GPU {seen.device.index} is being taken back ({state.ladder.reclaim.rung})"
    return ""


def _waking(facts: Facts, backend: BackendState) -> Step:
    outcome = facts.outcome_of(backend.pending)
    if outcome is None:
        return Step(backend)
    heard: Notes = (Heard(outcome),)
    if not outcome.ok:
        return _broken(facts, backend, f"wake failed: {outcome.detail}").after(heard)
    vitals = must_answer(facts.seen.now, _canary_seq(facts, backend))
    stage = replace(backend.sleep, stage=SleepStage.CHECKING, at=facts.seen.now)
    changed = backend.heard(sleep=stage, vitals=vitals)
    return Step(facts.enter(changed, Phase.SLEEPING, "awake, must answer first"), heard)


def _checking(facts: Facts, backend: BackendState) -> Step:
    health, now = facts.seen.health.get(backend.name), facts.seen.now
    answer = health.canary if health else None
    new = isinstance(answer, Known) and answer.value.seq > backend.vitals.canary_seq
    if new and isinstance(answer, Known) and answer.value.verdict.ok:
        took = format_duration(now - backend.sleep.at)
        run = backend.run.ready(now)
        changed = backend.having(sleep=AWAKE, vitals=fresh(now), run=run)
        text = f"{backend.name}: awake and answering after {took}"
        said = facts.say(EventName.WAKE, Severity.NOTICE, text, backend.name)
        return Step(facts.enter(changed, Phase.READY, ""), (said,))
    if new or now - backend.sleep.at >= WAKE_CHECK_S:
        return _broken(facts, backend, "awake, but it does not answer")
    return Step(backend)


def _canary_seq(facts: Facts, backend: BackendState) -> int:
    health = facts.seen.health.get(backend.name)
    if health is not None and isinstance(health.canary, Known):
        return health.canary.value.seq
    return backend.vitals.canary_seq


def _broken(facts: Facts, backend: BackendState, text: str) -> Step:
    """In no known state: a fresh process."""
    cause = Cause(CauseClass.ENGINE_DEAD, "", text)
    return fail(facts, backend.heard(sleep=AWAKE), text, cause)
