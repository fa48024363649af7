"""Keeping an engine's first model resident (Ollama): a load is a memory event like a start."""

from __future__ import annotations

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.backend.planning import engine_url
from arbiterd.core.facts import Ask, Facts, Step
from arbiterd.core.limits import (
    AGAIN_WINDOW_S,
    BLOCKED_AFTER_S,
    KEEP_FOR_EVER_S,
    REARM_S,
    WARM_AFTER_CLIENT_S,
    WARM_AWAY_S,
    WARM_FAILURES,
    WARM_RETRY_S,
)
from arbiterd.core.memory.gate import holders, loading, memory_event, room_for_load
from arbiterd.core.memory.ledger import used_of
from arbiterd.core.notes import About, Note, Notes, Order
from arbiterd.engines import engine_of
from arbiterd.engines.ollama_names import is_listed, same_model
from arbiterd.model.actions import LoadModel
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.health import LoadedModel
from arbiterd.model.pressure import Rung
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration


def step(facts: Facts, backend: BackendState) -> Step:
    """What has become of its first model, and whether that is to be loaded."""
    found = _step(facts, backend)
    if found.ask is Ask.WARM:
        return found
    backend = found.backend
    return Step(backend.having(warm=backend.warm.waits(None)), found.notes)


def _step(facts: Facts, backend: BackendState) -> Step:
    wanted = facts.settings.active.backends[backend.name]
    model = engine_of(wanted.kind).warm_model(wanted)
    if not model:
        return Step(backend.having(warm=backend.warm.none()))
    if backend.warm.pending:
        return _outcome(facts, backend, model)
    health = facts.seen.health.get(backend.name)
    if health is None or not isinstance(health.loaded, Known):
        return Step(backend)
    loaded, here = health.loaded.value, _resident(facts, backend, model)
    if facts.seen.now < backend.warm.away_until:
        return Step(backend)  # a client sent it away
    # A load below /v1 comes with Ollama's own keep-alive: ask again before it runs out.
    leaves = here is not None and here.expires_in_s is not None and here.expires_in_s < REARM_S
    if here is not None and not leaves:
        return Step(backend.having(warm=backend.warm.loaded()))
    if here is None and len(loaded) >= wanted.ollama.max_loaded_models:
        # A client's model has its place: no tug-of-war, it comes back when that one leaves.
        return Step(backend)
    soon = facts.seen.now < backend.warm.not_before
    if soon or (here is None and _too_soon(facts, backend, health.loaded.at)):
        return Step(backend)
    return Step(backend, ask=Ask.WARM)


def load(facts: Facts, backend: BackendState) -> Step:
    """Load its first model, never while anything else starts there."""
    wanted = facts.settings.active.backends[backend.name]
    model = engine_of(wanted.kind).warm_model(wanted)
    # Of one that is resident only the stay is renewed, which takes nothing.
    why, bytes_lack = ("", False) if _resident(facts, backend, model) else _blocked(facts, backend)
    if why:
        return _waits(facts, backend, model, why) if bytes_lack else Step(backend)
    action = LoadModel(
        id=facts.action_id("load", backend.name),
        backend=backend.name,
        gpu=facts.gpu_of(backend.name),
        reason=f"{model} is kept warm",
        url=engine_url(facts.settings, wanted),
        model=model,
        keep_alive_s=KEEP_FOR_EVER_S,
        timeout_s=wanted.start_timeout_s,
    )
    said = facts.say(
        EventName.LOAD_ADMITTED,
        Severity.INFO,
        f"{backend.name}: loading {model}",
        backend.name,
        action=action.id,
        reason=action.reason,
    )
    return Step(backend.having(warm=backend.warm.load(action.id)), (Order(action), said))


def note_loads(facts: Facts) -> tuple[Facts, Notes]:
    """What clients send away decides on the warm model: before ``step``."""
    notes: list[Note] = []
    for undone in facts.seen.load_undones:
        backend, wanted = facts.backends.get(undone.backend), facts.wanted(undone.backend)
        if backend is None or wanted is None:
            continue
        model = engine_of(wanted.kind).warm_model(wanted)
        if model and is_listed(undone.model, _names(facts, backend.name, model)):
            until = facts.seen.now + WARM_AWAY_S
            facts = facts.put(backend.having(warm=backend.warm.sent_away(until)))
            text = (
                f"{backend.name}: the load of {model} is held for {format_duration(WARM_AWAY_S)} "
                "or until a request needs it: a client has unloaded it"
            )
            notes.append(facts.say(EventName.LOAD_HELD, Severity.INFO, text, backend.name))
    return facts, tuple(notes)


def asked_for(facts: Facts, backend: BackendState, asked: str) -> BackendState:
    """A client's load has begun: a warm model that was sent away is wanted again."""
    wanted = facts.settings.active.backends[backend.name]
    model = engine_of(wanted.kind).warm_model(wanted)
    this = bool(model) and is_listed(asked, _names(facts, backend.name, model))
    return backend.having(warm=backend.warm.client_loads(facts.seen.now, this=this))


def _names(facts: Facts, name: str, model: str) -> tuple[str, ...]:
    """What /api/ps may call a model: a failover's other name shares its runner."""
    rules = facts.settings.failover
    aliases = [r.model for r in rules if r.to_backend == name and same_model(r.source, model)]
    return (model, *aliases)


def _too_soon(facts: Facts, backend: BackendState, listed_at: float) -> bool:
    """Whether the list may be older than a load's end, or a client has just loaded something."""
    since = facts.seen.now - backend.warm.client_load_at
    return listed_at <= backend.warm.load_ended_at or since < WARM_AFTER_CLIENT_S


def _resident(facts: Facts, backend: BackendState, model: str) -> LoadedModel | None:
    """The first model, or the one whose runner it shares, as the engine lists it; None: not resident."""
    health = facts.seen.health.get(backend.name)
    if health is None or not isinstance(health.loaded, Known):
        return None
    names = _names(facts, backend.name, model)
    listed = health.loaded.value
    return next((m for m in listed if any(is_listed(n, names) for n in (m.name, *m.also))), None)


def _blocked(facts: Facts, backend: BackendState) -> tuple[str, bool]:
    """(why it may not be loaded now, "" when it may; whether for want of bytes)."""
    if other := loading(facts, backend.name):
        return f"{backend.name} is loading {other}", False
    placement, health = facts.placements.get(backend.name), facts.seen.health.get(backend.name)
    for uuid in placement.devices if placement else ():
        seen, state = facts.seen.devices.get(uuid), facts.device(uuid)
        if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
            return "the GPU's memory cannot be read", False
        event = memory_event(facts, uuid, backend.name)
        if event is not None:
            return str(event), False
        if state.ladder.loads_held:
            return state.ladder.loads_held, True
        if _trimmed(facts, backend.name, uuid):
            return (
                f"it was unloaded for memory of GPU {seen.device.index}, which is not calm yet",
                True,
            )
        # Without a reckoning, all that it may still take.
        rest = placement.cap_bytes if placement else 0
        rest -= used_of(facts.ledgers[uuid], backend.name) or 0
        predicted = health.warm_bytes if health and health.warm_bytes is not None else rest
        lacks = room_for_load(facts, backend.name, uuid, max(0, min(rest, predicted)))
        if lacks:
            return f"{lacks}; held by {holders(seen, backend.name)}", True
    return "", False


def _trimmed(facts: Facts, name: str, uuid: str) -> bool:
    """A load would be undone at once: the ladder wants more free than a load must leave."""
    state, now = facts.device(uuid), facts.seen.now
    begun = f"{Rung.TRIM}:{name}:"
    lately = any(
        key.startswith(begun) and now - at < AGAIN_WINDOW_S for key, at in state.ladder.done.items()
    )
    return lately and state.sampled.pressure is not Pressure.CALM


def _waits(facts: Facts, backend: BackendState, model: str, why: str) -> Step:
    """It waits for bytes: after a while an incident says so, and who holds them."""
    since = facts.seen.now if backend.warm.waits_since is None else backend.warm.waits_since
    waits = backend.having(warm=backend.warm.waits(since))
    if facts.seen.now - since < BLOCKED_AFTER_S:
        return Step(waits)
    text = f"{backend.name}: {model} is not loaded: {why}"
    about = About((EventName.LOAD_HELD,), backend.name)
    return Step(waits, (facts.open(EventName.LOAD_HELD, Severity.WARNING, text, about),))


def waits_over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """It waits for no bytes any more."""
    backend = facts.backends.get(one.backend)
    waits = backend is not None and backend.warm.waits_since is not None
    if waits and backend is not None and backend.phase is Phase.READY:
        return None
    return EventName.RECOVERED, f"{one.backend}: its first model waits for no memory any more"


def _outcome(facts: Facts, backend: BackendState, model: str) -> Step:
    outcome = facts.outcome_of(backend.warm.pending)
    if outcome is None:
        return Step(backend)
    now, name = facts.seen.now, backend.name
    ended = backend.warm.ended(now, now + WARM_RETRY_S)
    if outcome.ok:
        said = facts.say(
            EventName.LOAD_ADMITTED,
            Severity.INFO,
            f"{name}: {model} is loaded after {format_duration(outcome.took_ms / 1000)}",
            name,
            action=outcome.action.id,
            took_ms=outcome.took_ms,
        )
        return Step(backend.having(warm=ended.loaded()), (said,))
    failures = backend.warm.failures + 1
    said = facts.say(
        EventName.LOAD_REFUSED,
        Severity.WARNING,
        f"{name}: cannot load {model}: {outcome.detail}",
        name,
        action=outcome.action.id,
        reason=outcome.detail,
    )
    done = backend.warm.done or failures >= WARM_FAILURES
    return Step(backend.having(warm=ended.failed(failures, done=done)), (said,))
