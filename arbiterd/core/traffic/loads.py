"""Loads that clients cause in Ollama: granted when they fit, held while they do not, refused when
they never will. A grant is a lease: a memory event on its device until the load has ended.

The bytes of a backend that is down stay booked for it: no load goes into them (design, section 4).
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.backend.warm import asked_for
from arbiterd.core.facts import Facts
from arbiterd.core.limits import CALM_S, LEASE_HELD_SAID_S
from arbiterd.core.memory.gate import loading, memory_event, room_for_load
from arbiterd.core.notes import Note, Notes
from arbiterd.core.state import Lease
from arbiterd.core.views import retry_after_s
from arbiterd.engines.ollama_names import is_listed
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState
from arbiterd.model.events import EventName, Severity
from arbiterd.model.gateway import LoadAnswer, LoadAsk, LoadVerdict
from arbiterd.model.health import LoadedModel
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size


def settle_loads(facts: Facts) -> tuple[Facts, Notes]:
    """Leases that have ended or expired."""
    now, leases, notes = facts.seen.now, dict(facts.leases), list[Note]()
    ended: list[str] = []
    for done in facts.seen.load_dones:
        lease = leases.pop(done.id, None)
        if lease is None:
            continue
        ended.append(lease.backend)
        took, name = now - lease.granted_at, lease.backend
        if done.detail:
            text = f"{name}: {lease.model} was not loaded: {done.detail}"
            notes.append(facts.say(EventName.LOAD_REFUSED, Severity.WARNING, text, name))
        else:
            text = f"{name}: {lease.model} is loaded after {format_duration(took)}"
            event, ms = EventName.LOAD_ADMITTED, took * 1000
            notes.append(facts.say(event, Severity.INFO, text, name, took_ms=ms))
    for lease in list(leases.values()):
        backend = facts.backends.get(lease.backend)
        gone = backend is None or backend.phase is not Phase.READY
        if gone or now >= lease.expires:
            del leases[lease.id]
            ended.append(lease.backend)
    if not ended:
        return facts, ()
    # What is resident is to be seen anew, and a client is about to use it.
    backends = {
        name: one.having(warm=one.warm.client_loaded(now)) if name in ended else one
        for name, one in facts.backends.items()
    }
    return replace(facts, leases=leases, backends=backends), tuple(notes)


def excused(lease: Lease, seconds: float) -> Lease:
    """As if so much time had not passed."""
    return replace(lease, expires=lease.expires + seconds)


def answer_loads(facts: Facts) -> tuple[Facts, Notes, tuple[LoadAnswer, ...]]:
    """Answers to all who ask now, oldest first; of the rest, since when each is held."""
    answers, held, notes = list[LoadAnswer](), dict[str, float](), list[Note]()
    for ask in sorted(facts.seen.load_asks, key=lambda one: one.since):
        answer = _answer(facts, ask)
        answers.append(answer)
        name = ask.backend
        if answer.verdict is LoadVerdict.WAIT:
            held[ask.id] = facts.state.held.get(ask.id, facts.seen.now)
            notes += _held(facts, ask, answer, held[ask.id])
        elif answer.verdict is LoadVerdict.GRANT:
            facts = _granted(facts, ask, answer.lease_s)
            size = ask.predicted_bytes
            text = f"{name}: loading {ask.model}, {format_size(size)} expected"
            event = EventName.LOAD_ADMITTED
            notes.append(facts.say(event, Severity.INFO, text, name, bytes_expected=size))
        else:
            text = f"{name}: {ask.model} is refused: {answer.reason}"
            notes.append(facts.say(EventName.LOAD_REFUSED, Severity.NOTICE, text, name))
    if held != facts.state.held:
        facts = facts.having(held=held)
    return facts, tuple(notes), tuple(answers)


def _granted(facts: Facts, ask: LoadAsk, lease_s: float) -> Facts:
    now = facts.seen.now
    lease = Lease(ask.id, ask.backend, ask.model, ask.predicted_bytes, now, now + lease_s)
    facts = facts.put(asked_for(facts, facts.backends[ask.backend], ask.model))
    return replace(facts, leases={**facts.leases, ask.id: lease})


def _held(facts: Facts, ask: LoadAsk, answer: LoadAnswer, since: float) -> Notes:
    """Once, on the tick that takes it over LEASE_HELD_SAID_S, however late that comes."""
    waited, before = facts.seen.now - since, facts.state.loads_at - since
    if not before < LEASE_HELD_SAID_S <= waited:
        return ()
    text = f"{ask.backend}: the load of {ask.model} is held: {answer.reason}"
    return (facts.say(EventName.LOAD_HELD, Severity.NOTICE, text, ask.backend),)


def _answer(facts: Facts, ask: LoadAsk) -> LoadAnswer:
    backend = facts.backends.get(ask.backend)
    wanted = facts.wanted(ask.backend)
    if backend is None or wanted is None:
        return LoadAnswer(ask.id, LoadVerdict.REFUSE, f"there is no backend {ask.backend}", 30)
    if backend.phase is not Phase.READY or facts.seen.stopping:
        why = f"{ask.backend} is {backend.phase.value}"
        return LoadAnswer(ask.id, LoadVerdict.WAIT, why, retry_after_s(facts, backend))
    placement = facts.placements[ask.backend]
    over = _over_cap(facts, ask, placement.cap_bytes)
    if placement.devices and over:
        return LoadAnswer(ask.id, LoadVerdict.REFUSE, over, 120)
    lease_s = wanted.start_timeout_s
    if backend.warm.pending or loading(facts, ask.backend):
        other = loading(facts, ask.backend) or "its first model"
        return LoadAnswer(ask.id, LoadVerdict.WAIT, f"{ask.backend} is loading {other}", 5)
    for uuid in placement.devices:
        waits = _waits(facts, backend, ask, uuid)
        if waits is not None:
            return waits
    return LoadAnswer(ask.id, LoadVerdict.GRANT, lease_s=lease_s)


def _resident(facts: Facts, ask: LoadAsk) -> tuple[LoadedModel, ...]:
    """By the newer of two lists: ours may be seconds old, that of a question that waits as well."""
    health = facts.seen.health.get(ask.backend)
    ours = health.loaded if health is not None else None
    if ask.resident is not None and not (isinstance(ours, Known) and ours.at > ask.since):
        return tuple(LoadedModel(name, size, size) for name, size in ask.resident)
    return ours.value if isinstance(ours, Known) else ()


def _its_own(ask: LoadAsk, model: LoadedModel) -> bool:
    """Whether this is the model asked for, or a name that shares its runner."""
    return is_listed(model.name, (ask.model, *ask.shares))


def _kept(facts: Facts, ask: LoadAsk) -> list[LoadedModel]:
    """Resident models that stay when this one is loaded: Ollama evicts down to its limit. Which one
    goes is its own choice: the smallest, to be on the safe side. A model never competes with itself.
    """
    wanted = facts.settings.active.backends[ask.backend]
    others = [one for one in _resident(facts, ask) if not _its_own(ask, one)]
    others.sort(key=lambda one: -one.vram_bytes)
    return others[: max(0, wanted.ollama.max_loaded_models - 1)]


def _over_cap(facts: Facts, ask: LoadAsk, cap: int) -> str:
    """Why it never fits into the cap, "" when it does."""
    kept = sum(one.vram_bytes for one in _kept(facts, ask))
    if ask.predicted_bytes + kept <= cap:
        return ""
    beside = f" beside {format_size(kept)} of resident models" if kept else ""
    return (
        f"{ask.model} needs {format_size(ask.predicted_bytes)}{beside}, the cap of {ask.backend} is "
        f"{format_size(cap)}: lower context_length, or raise memory"
    )


def _waits(facts: Facts, backend: BackendState, ask: LoadAsk, uuid: str) -> LoadAnswer | None:
    """Why the load must wait on this device, None when it may begin."""
    seen = facts.seen.devices.get(uuid)
    if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
        return LoadAnswer(ask.id, LoadVerdict.WAIT, "the GPU's memory cannot be read", 10)
    state = facts.device(uuid)
    if state.ladder.loads_held:
        return LoadAnswer(ask.id, LoadVerdict.WAIT, state.ladder.loads_held, round(CALM_S))
    event = memory_event(facts, uuid, backend.name)
    if event is not None:
        retry = retry_after_s(facts, facts.backends[event.backend])
        return LoadAnswer(ask.id, LoadVerdict.WAIT, str(event), retry)
    kept = sum(one.vram_bytes for one in _kept(facts, ask))
    evicted = sum(one.vram_bytes for one in _resident(facts, ask)) - kept
    lacks = room_for_load(facts, backend.name, uuid, ask.predicted_bytes, evicted)
    return LoadAnswer(ask.id, LoadVerdict.WAIT, f"{ask.model} {lacks}", 10) if lacks else None
