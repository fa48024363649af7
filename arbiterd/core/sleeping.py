"""Sleep and wake of an engine that can (vLLM with ``sleep = true``): drained, asleep, verified; and
back: room, wake, an answer.

/health says 200 throughout, and requests to a sleeper hang, so nothing is let in until a canary has
come back. A sleep or wake that fails leaves the engine in no known state: it is restarted
(facts/engines.md, 3.4).
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.desk import Desk
from arbiterd.core.failing import fail, give_back
from arbiterd.core.gate import beside_hung, memory_event
from arbiterd.core.judge import fresh
from arbiterd.core.limits import (
    BYTES_BACK_PINNED_S,
    FRESH_SAMPLES,
    WAKE_CHECK_S,
    WAKE_MARGIN_BYTES,
)
from arbiterd.core.planning import engine_url
from arbiterd.core.state import (
    LADDER,
    After,
    Ask,
    BackendState,
    DeviceState,
    DrainCause,
    Sleep,
    SleepStage,
)
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


def ask(desk: Desk, backend: BackendState, by: str, drain_s: float) -> None:
    """Drain, then sleep."""
    if backend.phase is not Phase.READY and not (
        backend.phase is Phase.DRAINING and backend.deadline is None
    ):
        return
    changed = replace(
        backend,
        after=After.SLEEPING,
        drain=DrainCause.SLEEP,
        deadline=desk.seen.now + drain_s,
        sleep=Sleep(by=by, at=desk.seen.now, held=dict(backend.held_bytes)),
    )
    desk.enter(changed, Phase.DRAINING, f"is put to sleep by {by}")


def fall(desk: Desk, backend: BackendState) -> None:
    """Drained: tell it."""
    wanted = desk.settings.active.backends[backend.name]
    action = SleepBackend(
        id=desk.action_id("sleep", backend.name),
        backend=backend.name,
        gpu=desk.gpu_of(backend.name),
        reason=backend.reason,
        url=engine_url(desk.settings, wanted),
        requests=engine_of(wanted.kind).sleep_requests(wanted),
    )
    expected = sum(backend.held_bytes.values())
    desk.act(action, bytes_expected=expected)
    held = dict(backend.held_bytes)
    sleep = replace(backend.sleep, stage=SleepStage.FALLING, at=desk.seen.now, held=held)
    vitals = replace(backend.vitals, canary_due=False)  # a request to a sleeper hangs
    changed = replace(backend, pending=action.id, deadline=None, sleep=sleep, vitals=vitals)
    desk.enter(changed, Phase.SLEEPING, f"falls asleep, asked by {sleep.by}")


def busy(backend: BackendState) -> bool:
    """Memory moves: it falls asleep or wakes."""
    return backend.sleep.stage in (SleepStage.FALLING, SleepStage.WAKING)


def step(desk: Desk, backend: BackendState) -> Ask | None:
    """One tick of the phase ``sleeping``."""
    match backend.sleep.stage:
        case SleepStage.FALLING:
            _falling(desk, backend)
        case SleepStage.WAKING:
            _waking(desk, backend)
        case SleepStage.CHECKING:
            _checking(desk, backend)
        case _ if backend.sleep.wake or _calm_again(desk, backend):
            return Ask.WAKE
        case _:
            pass
    return None


def _falling(desk: Desk, backend: BackendState) -> None:
    outcome = desk.outcome_of(backend.pending)
    if outcome is not None:
        desk.note_outcome(outcome)
        if not outcome.ok:
            _broken(desk, backend, f"sleep failed: {outcome.detail}")
            return
        sleep = replace(backend.sleep, at=desk.seen.now)
        backend = desk.put(replace(backend, pending="", sleep=sleep))
    if backend.pending:
        return
    freed = _freed(desk, backend)
    held = sum(backend.sleep.held.values())
    late = desk.seen.now - backend.sleep.at >= BYTES_BACK_PINNED_S
    if freed is None or (sum(freed.values()) < _MINIMUM * held and not late):
        return
    if late and sum(freed.values()) < _MINIMUM * held:
        size = format_size(sum(freed.values()))
        _broken(
            desk, backend, f"it says it sleeps, but only {size} of {format_size(held)} are back"
        )
        return
    sleep = replace(backend.sleep, stage=SleepStage.ASLEEP, at=desk.seen.now, freed=freed)
    size = format_size(sum(freed.values()))
    changed = replace(backend, sleep=sleep)
    desk.enter(changed, Phase.SLEEPING, f"asleep, put there by {sleep.by}; {size} given back")
    desk.tell(
        EventName.SLEEP,
        Severity.NOTICE,
        f"{backend.name}: asleep, {size} of {format_size(held)} given back; asked by {sleep.by}",
        backend.name,
        bytes_expected=held,
        bytes_freed=sum(freed.values()),
    )


def _freed(desk: Desk, backend: BackendState) -> dict[str, int] | None:
    """Bytes back per device by samples newer than the answer, None while there are none."""
    out = {}
    for uuid, held in backend.sleep.held.items():
        state = desk.devices.get(uuid, DeviceState())
        if state.seen_at <= backend.sleep.at:
            return None
        out[uuid] = max(0, held - state.used.get(backend.name, 0) - state.releasing)
    return out


def wake(desk: Desk, backend: BackendState) -> None:
    """Wake it, or keep why that must wait."""
    why = _no_room(desk, backend)
    if why and _outgrew(desk, backend):
        text = (
            f"held more than its cap when it fell asleep, so it cannot wake ({why}): started anew"
        )
        give_back(desk, backend, After.WAITING, text, grace_s=0.0)
        return
    if why:
        desk.enter(backend, Phase.SLEEPING, f"is to wake: {why}")
        return
    wanted = desk.settings.active.backends[backend.name]
    action = WakeBackend(
        id=desk.action_id("wake", backend.name),
        backend=backend.name,
        gpu=desk.gpu_of(backend.name),
        reason="waking",
        url=engine_url(desk.settings, wanted),
        requests=engine_of(wanted.kind).wake_requests(wanted),
    )
    desk.act(action)
    sleep = replace(backend.sleep, stage=SleepStage.WAKING, at=desk.seen.now)
    desk.enter(replace(backend, pending=action.id, sleep=sleep), Phase.SLEEPING, "waking")


def _calm_again(desk: Desk, backend: BackendState) -> bool:
    """The ladder's sleepers come back by themselves."""
    if backend.sleep.by != LADDER:
        return False
    return all(
        desk.devices.get(uuid, DeviceState()).pressure is Pressure.CALM
        for uuid in backend.sleep.held
    )


def _outgrew(desk: Desk, backend: BackendState) -> bool:
    """On a calm card it lacks the room only for what it held beyond its cap: that never comes back, and
    a fresh process needs no more than the cap.
    """
    for uuid, freed in backend.sleep.freed.items():
        seen, state = desk.seen.devices.get(uuid), desk.devices.get(uuid, DeviceState())
        calm = state.pressure is Pressure.CALM and memory_event(desk, uuid, backend.name) is None
        if seen is None or not isinstance(seen.memory, Known) or not calm:
            continue
        over = backend.sleep.held[uuid] > desk.placements[backend.name].cap_bytes
        if over and seen.memory.value.free_bytes < freed + WAKE_MARGIN_BYTES:
            return True
    return False


def _no_room(desk: Desk, backend: BackendState) -> str:
    """Why it may not wake now: no wakes blind, beside another memory event, or without room."""
    for uuid, freed in backend.sleep.freed.items():
        seen, state = desk.seen.devices.get(uuid), desk.devices.get(uuid, DeviceState())
        if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
            return "its GPU cannot be read"
        if state.samples < FRESH_SAMPLES or state.fault:
            return state.fault or "too few fresh samples"
        event = memory_event(desk, uuid, backend.name)
        if event is not None:
            return str(event)
        booked, _ = beside_hung(desk, uuid, backend.name)
        need, free = freed + booked + WAKE_MARGIN_BYTES, seen.memory.value.free_bytes
        if free < need:
            return f"needs {format_size(need)} free, {format_size(free)} is"
        if state.pressure is Pressure.CRITICAL:
            return f"GPU {seen.device.index} is critical"
        if state.reclaim is not None:
            return f"memory of GPU {seen.device.index} is being taken back ({state.reclaim.rung})"
    return ""


def _waking(desk: Desk, backend: BackendState) -> None:
    outcome = desk.outcome_of(backend.pending)
    if outcome is None:
        return
    desk.note_outcome(outcome)
    if not outcome.ok:
        _broken(desk, backend, f"wake failed: {outcome.detail}")
        return
    vitals = replace(fresh(desk.seen.now), canary_due=True, canary_seq=_canary_seq(desk, backend))
    stage = replace(backend.sleep, stage=SleepStage.CHECKING, at=desk.seen.now)
    changed = replace(backend, pending="", sleep=stage, vitals=vitals)
    desk.enter(changed, Phase.SLEEPING, "awake, must answer first")


def _checking(desk: Desk, backend: BackendState) -> None:
    health = desk.seen.health.get(backend.name)
    answer = health.canary if health else None
    new = isinstance(answer, Known) and answer.value.seq > backend.vitals.canary_seq
    if new and isinstance(answer, Known) and answer.value.verdict.ok:
        took = desk.seen.now - backend.sleep.at
        desk.enter(
            replace(backend, sleep=Sleep(), vitals=fresh(desk.seen.now), ready_at=desk.seen.now),
            Phase.READY,
            "",
        )
        text = f"{backend.name}: awake and answering after {format_duration(took)}"
        desk.tell(EventName.WAKE, Severity.NOTICE, text, backend.name)
        return
    if new or desk.seen.now - backend.sleep.at >= WAKE_CHECK_S:
        _broken(desk, backend, "awake, but it does not answer")
        return


def _canary_seq(desk: Desk, backend: BackendState) -> int:
    health = desk.seen.health.get(backend.name)
    if health is not None and isinstance(health.canary, Known):
        return health.canary.value.seq
    return backend.vitals.canary_seq


def _broken(desk: Desk, backend: BackendState, text: str) -> None:
    """In no known state: a fresh process."""
    cause = Cause(CauseClass.ENGINE_DEAD, "", text)
    fail(desk, replace(backend, sleep=Sleep(), pending=""), text, cause)
