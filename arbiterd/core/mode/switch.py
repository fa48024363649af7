"""Switching layouts: a diff of intent, a gate that the new layout must pass, and the way back.

What is equal in both layouts is not touched. The rest is drained, stopped, released and started in
order by the lifecycle itself; this file says what a switch touches, when it has come through, when it
has failed, and that the layout before comes back then (design, section 7). A rollback has no rollback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from arbiterd.core.backend.backend_state import BackendState, drained
from arbiterd.core.facts import Facts
from arbiterd.core.incidents import found
from arbiterd.core.limits import BLOCKED_AFTER_S, SWITCH_FAILURES
from arbiterd.core.mode.diff import estimate, plan, reason, same
from arbiterd.core.mode.intent import intent
from arbiterd.core.notes import About, Close, Note, Notes
from arbiterd.core.state import Switch
from arbiterd.core.views import not_accepting
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState
from arbiterd.model.events import EventName, Severity
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change, Ended, Step, SwitchResult, SwitchView
from arbiterd.quantities import format_duration


def begin(facts: Facts) -> tuple[Facts, Notes]:
    """Notice new settings; called before the backends are met."""
    settings, state, before = facts.settings, facts.state, facts.before.settings
    if before is settings or state.first_tick or before is None:
        return facts, ()
    if same(before, settings):
        return _again(facts), ()
    back = state.rollback if state.good is not None and same(state.good, settings) else ""
    return _begin(facts, before, back, state.unsettled)


def resume(facts: Facts, carried: Switch | None) -> tuple[Facts, Notes]:
    """First tick, once the units are adopted: the switch that was under way as the daemon before us
    ended goes on; one of which only the files tell begins anew.
    """
    settings = facts.settings
    here = (settings.source.sha256, settings.mode)
    if carried is not None and (carried.to_sha, carried.to_mode) == here:
        # Nobody watched for a while: what the file allows counts from now.
        deadline = facts.seen.now + _patience(settings, _touched(carried.changes))
        return facts.having(switch=replace(carried, deadline=deadline), rollback=""), ()
    facts, good = facts.having(switch=None), facts.state.good
    if good is None:
        return facts, ()
    return _begin(facts, good, facts.state.rollback, frozenset(facts.backends))


def excused(switch: Switch, seconds: float) -> Switch:
    """As if so much time had not passed."""
    return replace(switch, deadline=switch.deadline + seconds)


def _begin(
    facts: Facts, before: Settings, back: str, unsettled: frozenset[str]
) -> tuple[Facts, Notes]:
    settings = facts.settings
    changes = plan(settings, facts.backends, unsettled)
    touched = _touched(changes)
    switch = Switch(
        from_mode=before.mode,
        to_mode=settings.mode,
        began=facts.seen.now,
        began_wall=facts.seen.wall,
        deadline=facts.seen.now + _patience(settings, touched),
        changes=changes,
        failures={name: _failed(facts, name) for name in touched},
        rolling_back=back,
        estimated_s=estimate(settings, known_times(facts), touched),
        to_sha=settings.source.sha256,
        loaded_at=settings.source.loaded_at,
    )
    facts = facts.having(switch=switch, rollback="", unsettled=frozenset())
    if not touched:  # what is to be told has been told: by the reload, or by the rollback
        return _passed(facts, switch)
    kept = [name for name, change in changes.items() if change is Change.KEEP]
    doing = "; ".join(
        f"{change} {name} ({reason(name, change, before, settings)})"
        for name, change in touched.items()
    )
    text = (
        f"mode {before.mode} → {settings.mode}: {doing}"
        + (f"; kept untouched: {', '.join(kept)}" if kept else "")
        + f"; about {format_duration(switch.estimated_s)}"
    )
    name = EventName.ROLLBACK if back else EventName.MODE_SWITCH
    severity = Severity.WARNING if back else Severity.NOTICE
    return facts, (facts.say(name, severity, text, reason=back),)


def _again(facts: Facts) -> Facts:
    """The file in force, loaded once more: there is nothing to do, or it is being done."""
    loaded_at, switch = facts.settings.source.loaded_at, facts.state.switch
    if switch is None:
        mode = facts.settings.mode
        done = SwitchResult(mode, mode, loaded_at, facts.seen.wall, 0.0, Ended.IN_FORCE)
        return facts.having(last=done)
    if switch.rolling_back:
        return facts
    return facts.having(switch=replace(switch, loaded_at=loaded_at))


def follow(facts: Facts) -> tuple[Facts, Notes, Settings | None]:
    """One tick of a switch, after the backends' steps. Settings: the layout to go back to."""
    switch = facts.state.switch
    if switch is None or facts.seen.stopping:
        return facts, (), None
    left = [step for step in steps(facts, switch) if not step.done]
    if not left:
        return *_passed(facts, switch), None
    why = _failure(facts, switch, left)
    return _failed_gate(facts, switch, why) if why else (facts, (), None)


def steps(facts: Facts, switch: Switch) -> tuple[Step, ...]:
    """How far each backend has come."""
    out = []
    for name, change in switch.changes.items():
        backend = facts.backends.get(name)
        if change is Change.STOP:
            done = backend is None or backend.phase is Phase.STOPPED
        elif change is Change.KEEP:
            done = True
        else:
            done = backend is not None and _settled(facts, backend)
        doing = phase = "gone" if backend is None else backend.phase.value
        if backend is not None and backend.reason and not done:
            doing += f": {backend.reason}"
        out.append(Step(name, change, done, doing, phase))
    return tuple(out)


def view(facts: Facts) -> SwitchView | None:
    """As published."""
    switch = facts.state.switch
    if switch is None:
        return None
    return SwitchView(
        from_mode=switch.from_mode,
        to_mode=switch.to_mode,
        began=switch.began_wall,
        estimated_s=switch.estimated_s,
        steps=steps(facts, switch),
        rolling_back=switch.rolling_back,
        queued=facts.seen.queued_mode,
        left_s=max(0.0, switch.estimated_s - (facts.seen.now - switch.began)),
    )


def _settled(facts: Facts, backend: BackendState) -> bool:
    """It takes work, or an operator keeps it from doing so."""
    wanted = facts.wanted(backend.name)
    if wanted is None:
        return False
    if backend.wish.parked and backend.phase is Phase.STOPPED:
        return True
    current = backend.run.intent == intent(wanted, facts.settings.active.shares[backend.name])
    if not current:
        return False
    if backend.wish.drained:
        return drained(backend)
    return backend.phase is Phase.READY and not not_accepting(facts, backend)


def known_times(facts: Facts) -> dict[str, tuple[float | None, float | None]]:
    """(start, stop) in seconds of every backend that was ever seen, also in another mode."""
    mine = {
        one.name: (one.history.start_took_s, one.history.stop_took_s)
        for one in facts.backends.values()
    }
    return {**facts.state.times, **mine}


def _touched(changes: Mapping[str, Change]) -> dict[str, Change]:
    return {name: change for name, change in changes.items() if change is not Change.KEEP}


def _patience(settings: Settings, touched: Mapping[str, Change]) -> float:
    """The sum of everything the file allows those that are touched."""
    out = 0.0
    for name in touched:
        wanted = settings.active.backends.get(name)
        out += 60.0 if wanted is None else wanted.start_timeout_s + wanted.drain_timeout_s + 60.0
    return out


def _failed(facts: Facts, name: str) -> int:
    backend = facts.backends.get(name)
    return backend.history.count if backend else 0


def _failure(facts: Facts, switch: Switch, left: Sequence[Step]) -> str:
    """Why the new layout does not come through, "" while it may."""
    for step in left:
        backend = facts.backends.get(step.backend)
        if backend is None or step.change is Change.STOP:
            continue
        count = backend.history.count - switch.failures.get(step.backend, 0)
        cause = backend.history.cause.summary if backend.history.cause else backend.reason
        if count and backend.phase is Phase.FAILED:
            return f"{step.backend} cannot run in it: {cause}"
        if count >= SWITCH_FAILURES:
            return f"{step.backend} failed {count} times in it: {cause}"
        lost = _lost(facts, backend)
        if lost:
            return f"{step.backend} has no GPU in it: {lost}"
    if facts.seen.now >= switch.deadline:
        late = ", ".join(f"{step.backend} {step.doing}" for step in left)
        return f"not done after {format_duration(facts.seen.now - switch.began)}: {late}"
    return ""


def _lost(facts: Facts, backend: BackendState) -> str:
    """Its device is gone for good, as far as can be told."""
    if backend.phase is not Phase.WAITING or facts.seen.now - backend.since < BLOCKED_AFTER_S:
        return ""
    placement = facts.placements.get(backend.name)
    if placement is None or placement.problem:
        return placement.problem if placement else "not placed"
    for uuid in placement.devices:
        seen = facts.seen.devices.get(uuid)
        if seen is not None and seen.state in (GpuState.LOST, GpuState.FAULT):
            return f"GPU {seen.device.index} is {seen.state.value}"
        if uuid in facts.devices and facts.devices[uuid].fault.text:
            return facts.devices[uuid].fault.text
    return ""


def _passed(facts: Facts, switch: Switch) -> tuple[Facts, Notes]:
    took, back = facts.seen.now - switch.began, switch.rolling_back
    text = f"mode {switch.to_mode} is in force after {format_duration(took)}"
    name, about = EventName.MODE_SWITCH, About((EventName.ROLLBACK,))
    if back:
        name, text = EventName.ROLLBACK, f"rolled back: {text}"
    notes: Notes = ()
    if found(facts.incidents, about) is not None:
        notes = (Close(about, EventName.ROLLBACK, text),)
    elif _touched(switch.changes):
        notes = (facts.say(name, Severity.NOTICE, text, took_ms=took * 1000),)
    last = _result(facts, switch, Ended.ROLLED_BACK if back else Ended.IN_FORCE, back)
    good = facts.settings
    return facts.having(switch=None, good=good, unsettled=frozenset(), last=last), notes


def _failed_gate(facts: Facts, switch: Switch, why: str) -> tuple[Facts, Notes, Settings | None]:
    good, rollback = facts.state.good, EventName.ROLLBACK
    unsettled = frozenset(_touched(switch.changes))
    if facts.seen.settings_queued:
        text = f"mode {switch.to_mode} did not come up ({why}); the newer file follows"
        note: Note = facts.say(rollback, Severity.WARNING, text, reason=why)
        last, back, good = _result(facts, switch, Ended.SUPERSEDED, why), "", None
    elif switch.rolling_back or good is None or same(good, facts.settings):
        text = f"mode {switch.to_mode} did not come up whole: {why}; nothing to go back to"
        note = facts.say(rollback, Severity.CRITICAL, text, reason=why)
        if switch.rolling_back:
            why = f"{switch.rolling_back}; and going back: {why}"
        last, back, good = _result(facts, switch, Ended.FAILED, why), "", None
    else:
        text = f"mode {switch.to_mode} did not come up: {why}; mode {good.mode} comes back"
        never = About(())  # each rollback is told
        note = facts.open(rollback, Severity.ERROR, text, never, evidence=(("reason", why),))
        last, back = _result(facts, switch, Ended.ROLLED_BACK, why), why
    rollback_ = back or facts.state.rollback
    ended = facts.having(switch=None, unsettled=unsettled, last=last, rollback=rollback_)
    return ended, (note,), good


def _result(facts: Facts, switch: Switch, outcome: Ended, why: str) -> SwitchResult:
    """What came of it. A rollback belongs to the reload that it undoes."""
    last = facts.state.last
    undone = last if switch.rolling_back and last and last.outcome is Ended.ROLLED_BACK else None
    now = facts.seen
    return SwitchResult(
        from_mode=undone.from_mode if undone else switch.from_mode,
        to_mode=undone.to_mode if undone else switch.to_mode,
        loaded_at=undone.loaded_at if undone else switch.loaded_at,
        ended=now.wall,
        took_s=now.now - switch.began + (undone.took_s if undone else 0.0),
        outcome=outcome,
        reason=why,
    )
