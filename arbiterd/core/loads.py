"""Loads that clients cause in Ollama: granted when they fit, held while they do not, refused when
they never will. A grant is a lease: a memory event on its device until the load has ended.

The bytes of a backend that is down stay booked for it: no load goes into them (design, section 4).
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.desk import Desk
from arbiterd.core.gate import loading, memory_event, promised
from arbiterd.core.limits import CALM_S, LEASE_HELD_SAID_S, TIGHT_LOAD_MARGIN
from arbiterd.core.placement import headroom_bytes
from arbiterd.core.pressure import critical_free_bytes
from arbiterd.core.state import BackendState, DeviceState, Lease
from arbiterd.core.views import retry_after_s
from arbiterd.core.warm import asked_for
from arbiterd.engines.ollama_names import is_listed
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.events import EventName, Severity
from arbiterd.model.gateway import LoadAnswer, LoadAsk, LoadVerdict
from arbiterd.model.health import LoadedModel
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size


def settle_loads(desk: Desk) -> None:
    """Leases that have ended or expired."""
    now = desk.seen.now
    for done in desk.seen.load_dones:
        lease = desk.leases.pop(done.id, None)
        if lease is None:
            continue
        _ended(desk, lease.backend)
        took = now - lease.granted_at
        if done.detail:
            text = f"{lease.backend}: {lease.model} was not loaded: {done.detail}"
            desk.tell(EventName.LOAD_REFUSED, Severity.WARNING, text, lease.backend)
        else:
            text = f"{lease.backend}: {lease.model} is loaded after {format_duration(took)}"
            desk.tell(
                EventName.LOAD_ADMITTED, Severity.INFO, text, lease.backend, took_ms=took * 1000
            )
    for lease in list(desk.leases.values()):
        backend = desk.backends.get(lease.backend)
        gone = backend is None or backend.phase is not Phase.READY
        if gone or now >= lease.expires:
            del desk.leases[lease.id]
            _ended(desk, lease.backend)


def _ended(desk: Desk, name: str) -> None:
    """What is resident is to be seen anew, and a client is about to use it."""
    backend = desk.backends.get(name)
    if backend is not None:
        now = desk.seen.now
        desk.put(replace(backend, load_ended_at=now, client_load_at=now))


def answer_loads(desk: Desk) -> tuple[tuple[LoadAnswer, ...], dict[str, float]]:
    """Answers to all who ask now, oldest first; and since when each of the rest is held."""
    answers, held = [], {}
    for ask in sorted(desk.seen.load_asks, key=lambda one: one.since):
        answer = _answer(desk, ask)
        answers.append(answer)
        if answer.verdict is LoadVerdict.WAIT:
            since = desk.state.held.get(ask.id, desk.seen.now)
            _say_held(desk, ask, answer, since)
            held[ask.id] = since
        elif answer.verdict is LoadVerdict.GRANT:
            asked_for(desk, ask.backend, ask.model)
            expires = desk.seen.now + answer.lease_s
            desk.leases[ask.id] = Lease(
                ask.id, ask.backend, ask.model, ask.predicted_bytes, desk.seen.now, expires
            )
            text = (
                f"{ask.backend}: loading {ask.model}, {format_size(ask.predicted_bytes)} expected"
            )
            desk.tell(
                EventName.LOAD_ADMITTED,
                Severity.INFO,
                text,
                ask.backend,
                bytes_expected=ask.predicted_bytes,
            )
        else:
            text = f"{ask.backend}: {ask.model} is refused: {answer.reason}"
            desk.tell(EventName.LOAD_REFUSED, Severity.NOTICE, text, ask.backend)
    return tuple(answers), held


def _say_held(desk: Desk, ask: LoadAsk, answer: LoadAnswer, since: float) -> None:
    """Once, on the tick that takes it over LEASE_HELD_SAID_S, however late that comes."""
    waited, before = desk.seen.now - since, desk.state.loads_at - since
    if before < LEASE_HELD_SAID_S <= waited:
        text = f"{ask.backend}: the load of {ask.model} is held: {answer.reason}"
        desk.tell(EventName.LOAD_HELD, Severity.NOTICE, text, ask.backend)


def _answer(desk: Desk, ask: LoadAsk) -> LoadAnswer:
    backend = desk.backends.get(ask.backend)
    wanted = desk.wanted(ask.backend)
    if backend is None or wanted is None:
        return LoadAnswer(ask.id, LoadVerdict.REFUSE, f"there is no backend {ask.backend}", 30)
    if backend.phase is not Phase.READY or desk.seen.stopping:
        why = f"{ask.backend} is {backend.phase.value}"
        return LoadAnswer(ask.id, LoadVerdict.WAIT, why, retry_after_s(desk, backend))
    placement = desk.placements[ask.backend]
    over = _over_cap(desk, ask, placement.cap_bytes)
    if placement.devices and over:
        return LoadAnswer(ask.id, LoadVerdict.REFUSE, over, 120)
    lease_s = wanted.start_timeout_s
    if backend.warm_pending or loading(desk, ask.backend):
        other = loading(desk, ask.backend) or "its first model"
        return LoadAnswer(ask.id, LoadVerdict.WAIT, f"{ask.backend} is loading {other}", 5)
    for uuid in placement.devices:
        waits = _waits(desk, backend, ask, uuid)
        if waits is not None:
            return waits
    return LoadAnswer(ask.id, LoadVerdict.GRANT, lease_s=lease_s)


def _resident(desk: Desk, ask: LoadAsk) -> tuple[LoadedModel, ...]:
    """By the newer of two lists: ours may be seconds old, that of a question that waits as well."""
    health = desk.seen.health.get(ask.backend)
    ours = health.loaded if health is not None else None
    if ask.resident is not None and not (isinstance(ours, Known) and ours.at > ask.since):
        return tuple(LoadedModel(name, size, size) for name, size in ask.resident)
    return ours.value if isinstance(ours, Known) else ()


def _its_own(ask: LoadAsk, model: LoadedModel) -> bool:
    """Whether this is the model asked for, or a name that shares its runner."""
    return is_listed(model.name, (ask.model, *ask.shares))


def _kept(desk: Desk, ask: LoadAsk) -> list[LoadedModel]:
    """Resident models that stay when this one is loaded: Ollama evicts down to its limit. Which one
    goes is its own choice: the smallest, to be on the safe side. A model never competes with itself.
    """
    wanted = desk.settings.active.backends[ask.backend]
    others = [one for one in _resident(desk, ask) if not _its_own(ask, one)]
    others.sort(key=lambda one: -one.vram_bytes)
    return others[: max(0, wanted.ollama.max_loaded_models - 1)]


def _over_cap(desk: Desk, ask: LoadAsk, cap: int) -> str:
    """Why it never fits into the cap, "" when it does."""
    kept = sum(one.vram_bytes for one in _kept(desk, ask))
    if ask.predicted_bytes + kept <= cap:
        return ""
    beside = f" beside {format_size(kept)} of resident models" if kept else ""
    return (
        f"{ask.model} needs {format_size(ask.predicted_bytes)}{beside}, the cap of {ask.backend} is "
        f"{format_size(cap)}: lower context_length, or raise memory"
    )


def _waits(desk: Desk, backend: BackendState, ask: LoadAsk, uuid: str) -> LoadAnswer | None:
    """Why the load must wait on this device, None when it may begin."""
    seen = desk.seen.devices.get(uuid)
    if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
        return LoadAnswer(ask.id, LoadVerdict.WAIT, "the GPU's memory cannot be read", 10)
    state = desk.devices.get(uuid, DeviceState())
    if state.loads_held:
        return LoadAnswer(ask.id, LoadVerdict.WAIT, state.loads_held, round(CALM_S))
    event = memory_event(desk, uuid, backend.name)
    if event is not None:
        retry = retry_after_s(desk, desk.backends[event.backend])
        return LoadAnswer(ask.id, LoadVerdict.WAIT, str(event), retry)
    booked = promised(desk, uuid, backend.name)
    kept = sum(one.vram_bytes for one in _kept(desk, ask))
    evicted = sum(one.vram_bytes for one in _resident(desk, ask)) - kept
    headroom = headroom_bytes(desk.settings.arbiter.headroom_bytes, seen.device)
    margin = critical_free_bytes(headroom)
    if state.pressure is Pressure.TIGHT:
        margin = max(margin, int(headroom * TIGHT_LOAD_MARGIN))
    need = ask.predicted_bytes - evicted + booked + margin
    free = seen.memory.value.free_bytes
    if free >= need:
        return None
    why = (
        f"{ask.model} needs {format_size(ask.predicted_bytes)}, {format_size(free)} is free, "
        f"{format_size(booked)} of it is booked for others"
    )
    return LoadAnswer(ask.id, LoadVerdict.WAIT, why, 10)
