"""Meeting backends: those of the settings, and those found alive from before our start."""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.carry import go_on
from arbiterd.core.desk import Desk
from arbiterd.core.diff import revocable
from arbiterd.core.failing import give_back
from arbiterd.core.intent import intent
from arbiterd.core.lifecycle import stop
from arbiterd.core.limits import START_HARD_FACTOR
from arbiterd.core.state import After, BackendState, Canaries, Carry, DrainCause
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.model.launch import UnitState

_LIVE = (Phase.READY, Phase.STARTING, Phase.SLEEPING)


def meet(desk: Desk) -> None:
    """A state for every backend that is wanted or alive; those changed by a reload are restarted,
    those that are neither wanted nor alive are forgotten.
    """
    times = dict(desk.state.times)
    names = [*desk.settings.active.backends, *desk.seen.units]
    for name in names:
        if name not in desk.backends:
            start, stop_ = times.get(name, (None, None))
            desk.put(
                BackendState(
                    name,
                    since=desk.seen.now,
                    since_wall=desk.seen.wall,
                    reason="new",
                    start_took_s=start,
                    stop_took_s=stop_,
                )
            )
    for name, backend in list(desk.backends.items()):
        gone = backend.phase is Phase.STOPPED and name not in desk.seen.units
        if desk.wanted(name) is None and gone:
            times[name] = (backend.start_took_s, backend.stop_took_s)
            del desk.backends[name]
    if times != desk.state.times:
        desk.state = replace(desk.state, times=times)
    if desk.state.first_tick:
        return
    for name, backend in list(desk.backends.items()):
        wanted = desk.wanted(name)
        if wanted is None:
            continue
        now_wanted = intent(wanted, desk.settings.active.shares[name])
        if backend.intent == now_wanted and revocable(backend) and not desk.seen.stopping:
            changed = replace(backend, deadline=None, after=After.STOPPED)
            desk.enter(changed, Phase.READY, "")  # the layout it runs in has come back in time
        # What was started is not known where the record is lost. It is left alone, unless a switch is under
        # way: that ends only with every engine in what is wanted now.
        left = not backend.intent and (desk.state.switch is None or backend.phase not in _LIVE)
        if left or backend.intent == now_wanted:
            continue
        drained = backend.phase is Phase.DRAINING and backend.deadline is None
        if backend.phase in _LIVE or drained:
            stop(desk, backend, After.WAITING, DrainCause.CHANGED)
        elif backend.phase in (Phase.FAILED, Phase.BACKOFF):
            # what it failed in is gone: it is tried at once, and its failures are forgotten
            fresh = replace(backend, intent="", not_before=0.0, attempt=0, failures=(), cause=None)
            desk.enter(fresh, Phase.WAITING, "changed")


def adopt(desk: Desk, carried: Carry) -> None:
    """First tick: take over every unit that is alive, by its name; its pid does not change. What the
    daemon before us had begun goes on.
    """
    desk.state = replace(desk.state, last=carried.last, times=carried.times)
    for name, before in carried.backends.items():
        if name in desk.backends and name not in desk.seen.units and desk.wanted(name):
            go_on(desk, before, UnitState.ABSENT)
    for name, unit in desk.seen.units.items():
        wanted = desk.wanted(name)
        if unit.state is UnitState.ABSENT:
            continue
        old = carried.backends.get(name)
        if old is not None and go_on(desk, old, unit.state):
            continue
        backend = desk.backends[name]
        if wanted is None and unit.state is UnitState.RUNNING:
            running = replace(backend, intent=unit.intent, invocation=unit.invocation)
            stop(desk, running, After.STOPPED, DrainCause.UNWANTED)
            continue
        if wanted is None:
            give_back(desk, backend, After.STOPPED, "the mode does not name it", grace_s=0.0)
            continue
        if unit.state is UnitState.EXITED:
            give_back(desk, backend, After.WAITING, "ended while nobody watched", grace_s=0.0)
            continue
        now = desk.seen.now
        changed = replace(
            backend,
            adopted=True,
            intent=unit.intent,
            invocation=unit.invocation,
            canaries=old.canaries if old and old.invocation == unit.invocation else Canaries(),
            deadline=now + wanted.start_timeout_s,
            hard_deadline=now + wanted.start_timeout_s * START_HARD_FACTOR,
        )
        desk.enter(changed, Phase.STARTING, "adopted, not yet heard from")
        pid = unit.main.pid if unit.main else 0
        text = f"{name}: adopted pid {pid}, nothing was restarted"
        desk.tell(EventName.ADOPTED, Severity.NOTICE, text, name)
