"""Meeting backends: those of the settings, and those found alive from before our start."""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.backend.backend_state import After, BackendState, DrainCause, drained, new
from arbiterd.core.backend.carry import go_on
from arbiterd.core.backend.failing import give_back
from arbiterd.core.backend.lifecycle import start_deadlines, stop
from arbiterd.core.facts import Facts, Step
from arbiterd.core.mode.diff import revocable
from arbiterd.core.mode.intent import intent
from arbiterd.core.notes import Note, Notes
from arbiterd.core.state import Carry
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitObservation, UnitState

_LIVE = (Phase.READY, Phase.STARTING, Phase.SLEEPING)


def meet(facts: Facts) -> Facts:
    """A state for every backend that is wanted or alive; those changed by a reload are restarted,
    those that are neither wanted nor alive are forgotten.
    """
    times, backends = dict(facts.state.times), dict(facts.backends)
    for name in (*facts.settings.active.backends, *facts.seen.units):
        if name not in backends:
            backends[name] = _new(facts, name)
    for name, backend in list(backends.items()):
        gone = backend.phase is Phase.STOPPED and name not in facts.seen.units
        if facts.wanted(name) is None and gone:
            times[name] = (backend.history.start_took_s, backend.history.stop_took_s)
            del backends[name]
    if not facts.before.first_tick:
        backends = {name: _met(facts, one) for name, one in backends.items()}
    if all(one is facts.backends.get(name) for name, one in backends.items()) and (
        len(backends) == len(facts.backends)
    ):
        return facts
    facts = replace(facts, backends=backends)
    return facts if times == facts.state.times else facts.having(times=times)


def _new(facts: Facts, name: str) -> BackendState:
    times = facts.state.times.get(name, (None, None))
    return new(name, facts.seen.now, facts.seen.wall, times)


def _met(facts: Facts, backend: BackendState) -> BackendState:
    """What a reload means for it."""
    wanted = facts.wanted(backend.name)
    if wanted is None:
        return backend
    now_wanted = intent(wanted, facts.settings.active.shares[backend.name])
    if backend.run.intent == now_wanted and revocable(backend) and not facts.seen.stopping:
        return facts.enter(
            backend.stay(), Phase.READY, ""
        )  # the layout it runs in has come back in time
    # What was started is not known where the record is lost. It is left alone, unless a switch is under
    # way: that ends only with every engine in what is wanted now.
    left = not backend.run.intent and (facts.state.switch is None or backend.phase not in _LIVE)
    if left or backend.run.intent == now_wanted:
        return backend
    if backend.phase in _LIVE or drained(backend):
        return stop(facts, backend, After.WAITING, DrainCause.CHANGED)
    if backend.phase in (Phase.FAILED, Phase.BACKOFF):
        # what it failed in is gone: it is tried at once, and its failures are forgotten
        history = backend.history.put_away().forgiven()
        fresh = backend.having(run=backend.run.unknown(), history=history)
        return facts.enter(fresh, Phase.WAITING, "changed")
    return backend


def adopt(facts: Facts, carried: Carry) -> tuple[Facts, Notes]:
    """First tick: take over every unit that is alive, by its name; its pid does not change. What the
    daemon before us had begun goes on.
    """
    facts, notes = facts.having(last=carried.last, times=carried.times), list[Note]()
    for name, before in carried.backends.items():
        if name in facts.backends and name not in facts.seen.units and facts.wanted(name):
            step, _ = go_on(facts, before, UnitState.ABSENT)
            facts, notes = facts.put(step.backend), [*notes, *step.notes]
    for name, unit in facts.seen.units.items():
        if unit.state is UnitState.ABSENT:
            continue
        old = carried.backends.get(name)
        step, goes_on = Step(facts.backends[name]), False
        if old is not None:
            step, goes_on = go_on(facts, old, unit.state)
        if not goes_on:
            step = _found(facts, step.backend, unit, old)
        facts, notes = facts.put(step.backend), [*notes, *step.notes]
    return facts, tuple(notes)


def _found(
    facts: Facts, backend: BackendState, unit: UnitObservation, old: BackendState | None
) -> Step:
    """A unit of which nothing was under way."""
    name, wanted = backend.name, facts.wanted(backend.name)
    if wanted is None and unit.state is UnitState.RUNNING:
        run = backend.run.found(unit.intent, unit.invocation)
        return Step(stop(facts, backend.having(run=run), After.STOPPED, DrainCause.UNWANTED))
    if wanted is None:
        why = "the mode does not name it"
        return give_back(facts, backend, After.STOPPED, why, grace_s=0.0)
    if unit.state is UnitState.EXITED:
        return give_back(facts, backend, After.WAITING, "ended while nobody watched", grace_s=0.0)
    run = backend.run.found(unit.intent, unit.invocation, adopted=True)
    same = old is not None and old.run.invocation == unit.invocation
    canaries = old.canaries if old is not None and same else backend.canaries
    changed = backend.having(run=run, canaries=canaries).due(*start_deadlines(facts, wanted))
    pid = unit.main.pid if unit.main else 0
    text = f"{name}: adopted pid {pid}, nothing was restarted"
    said = facts.say(EventName.ADOPTED, Severity.NOTICE, text, name)
    return Step(facts.enter(changed, Phase.STARTING, "adopted, not yet heard from"), (said,))
