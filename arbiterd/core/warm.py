"""Keeping an engine's first model resident (Ollama): a load is a memory event like a start."""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.desk import Desk
from arbiterd.core.gate import beside_hung, loading, memory_event
from arbiterd.core.ledger import used_of
from arbiterd.core.limits import (
    KEEP_FOR_EVER_S,
    REARM_S,
    WARM_AFTER_CLIENT_S,
    WARM_AWAY_S,
    WARM_FAILURES,
    WARM_RETRY_S,
)
from arbiterd.core.planning import engine_url
from arbiterd.core.state import Ask, BackendState, DeviceState, updated
from arbiterd.engines import engine_of
from arbiterd.engines.ollama_names import is_listed, same_model
from arbiterd.model.actions import LoadModel
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration


def note(desk: Desk, backend: BackendState) -> Ask | None:
    """What has become of its first model, and whether that is to be loaded."""
    wanted = desk.settings.active.backends[backend.name]
    model = engine_of(wanted.kind).warm_model(wanted)
    if not model:
        desk.put(updated(backend, warm_done=True))
        return None
    if backend.warm_pending:
        _outcome(desk, backend, model)
        return None
    health = desk.seen.health.get(backend.name)
    if health is None or not isinstance(health.loaded, Known):
        return None
    names = _names(desk, backend.name, model)
    loaded = health.loaded.value
    here = next((m for m in loaded if any(is_listed(n, names) for n in (m.name, *m.also))), None)
    if desk.seen.now < backend.warm_away_until:
        return None  # a client sent it away
    # A load below /v1 comes with Ollama's own keep-alive: ask again before it runs out.
    leaves = here is not None and here.expires_in_s is not None and here.expires_in_s < REARM_S
    if here is not None and not leaves:
        if not backend.warm_done or backend.warm_failures:
            desk.put(replace(backend, warm_done=True, warm_failures=0))
        return None
    crowded = len(loaded) >= wanted.ollama.max_loaded_models
    if here is None and crowded:
        return None  # a client's model has its place: no tug-of-war, it comes back when that one leaves
    if desk.seen.now < backend.warm_not_before:
        return None
    if here is None and _too_soon(desk, backend, health.loaded.at):
        return None
    return Ask.WARM


def load(desk: Desk, backend: BackendState) -> None:
    """Load its first model, never while anything else starts there."""
    if _blocked(desk, backend):
        return
    wanted = desk.settings.active.backends[backend.name]
    model = engine_of(wanted.kind).warm_model(wanted)
    action = LoadModel(
        id=desk.action_id("load", backend.name),
        backend=backend.name,
        gpu=desk.gpu_of(backend.name),
        reason=f"{model} is kept warm",
        url=engine_url(desk.settings, wanted),
        model=model,
        keep_alive_s=KEEP_FOR_EVER_S,
        timeout_s=wanted.start_timeout_s,
    )
    desk.act(action)
    desk.put(replace(backend, warm_pending=action.id))
    text = f"{backend.name}: loading {model}"
    desk.tell(
        EventName.LOAD_ADMITTED,
        Severity.INFO,
        text,
        backend.name,
        action=action.id,
        reason=action.reason,
    )


def note_loads(desk: Desk) -> None:
    """What clients load and send away decides on the warm model: before ``note``."""
    for undone in desk.seen.load_undones:
        backend, wanted = desk.backends.get(undone.backend), desk.wanted(undone.backend)
        if backend is None or wanted is None:
            continue
        model = engine_of(wanted.kind).warm_model(wanted)
        if model and is_listed(undone.model, _names(desk, backend.name, model)):
            until = desk.seen.now + WARM_AWAY_S
            desk.put(replace(backend, warm_away_until=until))
            text = (
                f"{backend.name}: the load of {model} is held for {format_duration(WARM_AWAY_S)} "
                "or until a request needs it: a client has unloaded it"
            )
            desk.tell(EventName.LOAD_HELD, Severity.INFO, text, backend.name)


def asked_for(desk: Desk, name: str, asked: str) -> None:
    """A client's load has begun: a warm model that was sent away is wanted again."""
    backend, wanted = desk.backends.get(name), desk.wanted(name)
    if backend is None or wanted is None:
        return
    model = engine_of(wanted.kind).warm_model(wanted)
    again = model and is_listed(asked, _names(desk, name, model))
    until = 0.0 if again else backend.warm_away_until
    desk.put(replace(backend, client_load_at=desk.seen.now, warm_away_until=until))


def _names(desk: Desk, name: str, model: str) -> tuple[str, ...]:
    """What /api/ps may call a model: a failover's other name shares its runner."""
    rules = desk.settings.failover
    aliases = [r.model for r in rules if r.to_backend == name and same_model(r.source, model)]
    return (model, *aliases)


def _too_soon(desk: Desk, backend: BackendState, listed_at: float) -> bool:
    """Whether the list may be older than a load's end, or a client has just loaded something."""
    since = desk.seen.now - backend.client_load_at
    return listed_at <= backend.load_ended_at or since < WARM_AFTER_CLIENT_S


def _blocked(desk: Desk, backend: BackendState) -> bool:
    if loading(desk, backend.name):
        return True
    placement = desk.placements.get(backend.name)
    for uuid in placement.devices if placement else ():
        seen = desk.seen.devices.get(uuid)
        if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
            return True
        if memory_event(desk, uuid, backend.name) is not None:
            return True
        booked, hung = beside_hung(desk, uuid, backend.name)
        own = (
            placement.cap_bytes - (used_of(desk.ledgers[uuid], backend.name) or 0)
            if placement
            else 0
        )
        if hung and seen.memory.value.free_bytes < booked + own:
            return True
        state = desk.devices.get(uuid, DeviceState())
        if state.pressure in (Pressure.TIGHT, Pressure.CRITICAL) or state.loads_held:
            return True  # it was trimmed, or would be: it comes back when the device is calm
    return False


def _outcome(desk: Desk, backend: BackendState, model: str) -> None:
    outcome = desk.outcome_of(backend.warm_pending)
    if outcome is None:
        return
    now = desk.seen.now
    if outcome.ok:
        desk.put(
            replace(
                backend,
                warm_pending="",
                warm_done=True,
                warm_failures=0,
                warm_not_before=now + WARM_RETRY_S,
                load_ended_at=now,
            )
        )
        desk.tell(
            EventName.LOAD_ADMITTED,
            Severity.INFO,
            f"{backend.name}: {model} is loaded after {format_duration(outcome.took_ms / 1000)}",
            backend.name,
            action=outcome.action.id,
            took_ms=outcome.took_ms,
        )
        return
    failures = backend.warm_failures + 1
    desk.put(
        replace(
            backend,
            warm_pending="",
            warm_failures=failures,
            warm_done=backend.warm_done or failures >= WARM_FAILURES,
            warm_not_before=now + WARM_RETRY_S,
            load_ended_at=now,
        )
    )
    text = f"{backend.name}: cannot load {model}: {outcome.detail}"
    desk.tell(
        EventName.LOAD_REFUSED,
        Severity.WARNING,
        text,
        backend.name,
        action=outcome.action.id,
        reason=outcome.detail,
    )
