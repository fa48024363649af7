"""Switching layouts: a diff of intent, a gate that the new layout must pass, and the way back.

What is equal in both layouts is not touched. The rest is drained, stopped, released and started in
order by the lifecycle itself; this file says what a switch touches, when it has come through, when it
has failed, and that the layout before comes back then (design, section 7). A rollback has no rollback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arbiterd.core.desk import Desk
from arbiterd.core.diff import estimate, plan, reason, same
from arbiterd.core.intent import intent
from arbiterd.core.limits import BLOCKED_AFTER_S, SWITCH_FAILURES
from arbiterd.core.state import BackendState, Switch
from arbiterd.core.views import not_accepting
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState
from arbiterd.model.events import EventName, Severity
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change, Ended, Step, SwitchResult, SwitchView
from arbiterd.quantities import format_duration


def begin(desk: Desk, before: Settings | None) -> None:
    """Notice new settings; called before the backends are met."""
    settings, state = desk.settings, desk.state
    if state.first_tick or before is None:
        return
    if same(before, settings):
        _again(desk)
        return
    back = state.rollback if state.good is not None and same(state.good, settings) else ""
    _begin(desk, before, back, state.unsettled)


def resume(desk: Desk, carried: Switch | None) -> None:
    """First tick, once the units are adopted: the switch that was under way as the daemon before us
    ended goes on; one of which only the files tell begins anew.
    """
    settings, state = desk.settings, desk.state
    desk.state = state = replace(state, switch=None)
    if carried is not None and (carried.to_sha, carried.to_mode) == (
        settings.source.sha256,
        settings.mode,
    ):
        # Nobody watched for a while: what the file allows counts from now.
        deadline = desk.seen.now + _patience(settings, _touched(carried.changes))
        desk.state = replace(state, switch=replace(carried, deadline=deadline), rollback="")
        return
    good = state.good
    if good is None:
        return
    _begin(desk, good, state.rollback, frozenset(desk.backends))


def _begin(desk: Desk, before: Settings, back: str, unsettled: frozenset[str]) -> None:
    settings, state = desk.settings, desk.state
    changes = plan(settings, desk.backends, unsettled)
    touched = _touched(changes)
    switch = Switch(
        from_mode=before.mode,
        to_mode=settings.mode,
        began=desk.seen.now,
        began_wall=desk.seen.wall,
        deadline=desk.seen.now + _patience(settings, touched),
        changes=changes,
        failures={name: _failed(desk, name) for name in touched},
        rolling_back=back,
        estimated_s=estimate(settings, known_times(desk), touched),
        to_sha=settings.source.sha256,
        loaded_at=settings.source.loaded_at,
    )
    desk.state = replace(state, switch=switch, rollback="", unsettled=frozenset())
    if not touched:  # what is to be told has been told: by the reload, or by the rollback
        _passed(desk, switch)
        return
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
    desk.tell(name, Severity.WARNING if back else Severity.NOTICE, text, reason=back)


def _again(desk: Desk) -> None:
    """The file in force, loaded once more: there is nothing to do, or it is being done."""
    loaded_at, switch = desk.settings.source.loaded_at, desk.state.switch
    if switch is not None:
        if not switch.rolling_back:
            desk.state = replace(desk.state, switch=replace(switch, loaded_at=loaded_at))
        return
    mode = desk.settings.mode
    done = SwitchResult(mode, mode, loaded_at, desk.seen.wall, 0.0, Ended.IN_FORCE)
    desk.state = replace(desk.state, last=done)


def follow(desk: Desk) -> Settings | None:
    """One tick of a switch, after the backends' steps. Settings: the layout to go back to."""
    switch = desk.state.switch
    if switch is None or desk.seen.stopping:
        return None
    left = [step for step in steps(desk, switch) if not step.done]
    if not left:
        _passed(desk, switch)
        return None
    why = _failure(desk, switch, left)
    if not why:
        return None
    return _failed_gate(desk, switch, why)


def steps(desk: Desk, switch: Switch) -> tuple[Step, ...]:
    """How far each backend has come."""
    out = []
    for name, change in switch.changes.items():
        backend = desk.backends.get(name)
        if change is Change.STOP:
            done = backend is None or backend.phase is Phase.STOPPED
        elif change is Change.KEEP:
            done = True
        else:
            done = backend is not None and _settled(desk, backend)
        doing = phase = "gone" if backend is None else backend.phase.value
        if backend is not None and backend.reason and not done:
            doing += f": {backend.reason}"
        out.append(Step(name, change, done, doing, phase))
    return tuple(out)


def view(desk: Desk) -> SwitchView | None:
    """As published."""
    switch = desk.state.switch
    if switch is None:
        return None
    return SwitchView(
        from_mode=switch.from_mode,
        to_mode=switch.to_mode,
        began=switch.began_wall,
        estimated_s=switch.estimated_s,
        steps=steps(desk, switch),
        rolling_back=switch.rolling_back,
        queued=desk.seen.queued_mode,
        left_s=max(0.0, switch.estimated_s - (desk.seen.now - switch.began)),
    )


def _settled(desk: Desk, backend: BackendState) -> bool:
    """It takes work, or an operator keeps it from doing so."""
    wanted = desk.wanted(backend.name)
    if wanted is None:
        return False
    if backend.parked and backend.phase is Phase.STOPPED:
        return True
    current = backend.intent == intent(wanted, desk.settings.active.shares[backend.name])
    if not current:
        return False
    if backend.held:
        return backend.phase is Phase.DRAINING and backend.deadline is None
    return backend.phase is Phase.READY and not not_accepting(desk, backend)


def known_times(desk: Desk) -> dict[str, tuple[float | None, float | None]]:
    """(start, stop) in seconds of every backend that was ever seen, also in another mode."""
    mine = {one.name: (one.start_took_s, one.stop_took_s) for one in desk.backends.values()}
    return {**desk.state.times, **mine}


def _touched(changes: Mapping[str, Change]) -> dict[str, Change]:
    return {name: change for name, change in changes.items() if change is not Change.KEEP}


def _patience(settings: Settings, touched: dict[str, Change]) -> float:
    """The sum of everything the file allows those that are touched."""
    out = 0.0
    for name in touched:
        wanted = settings.active.backends.get(name)
        out += 60.0 if wanted is None else wanted.start_timeout_s + wanted.drain_timeout_s + 60.0
    return out


def _failed(desk: Desk, name: str) -> int:
    backend = desk.backends.get(name)
    return backend.failed_count if backend else 0


def _failure(desk: Desk, switch: Switch, left: list[Step]) -> str:
    """Why the new layout does not come through, "" while it may."""
    for step in left:
        backend = desk.backends.get(step.backend)
        if backend is None or step.change is Change.STOP:
            continue
        count = backend.failed_count - switch.failures.get(step.backend, 0)
        cause = backend.cause.summary if backend.cause else backend.reason
        if count and backend.phase is Phase.FAILED:
            return f"{step.backend} cannot run in it: {cause}"
        if count >= SWITCH_FAILURES:
            return f"{step.backend} failed {count} times in it: {cause}"
        lost = _lost(desk, backend)
        if lost:
            return f"{step.backend} has no GPU in it: {lost}"
    if desk.seen.now >= switch.deadline:
        late = ", ".join(f"{step.backend} {step.doing}" for step in left)
        return f"not done after {format_duration(desk.seen.now - switch.began)}: {late}"
    return ""


def _lost(desk: Desk, backend: BackendState) -> str:
    """Its device is gone for good, as far as can be told."""
    if backend.phase is not Phase.WAITING or desk.seen.now - backend.since < BLOCKED_AFTER_S:
        return ""
    placement = desk.placements.get(backend.name)
    if placement is None or placement.problem:
        return placement.problem if placement else "not placed"
    for uuid in placement.devices:
        seen = desk.seen.devices.get(uuid)
        if seen is not None and seen.state in (GpuState.LOST, GpuState.FAULT):
            return f"GPU {seen.device.index} is {seen.state.value}"
        if uuid in desk.devices and desk.devices[uuid].fault:
            return desk.devices[uuid].fault
    return ""


def _passed(desk: Desk, switch: Switch) -> None:
    took = desk.seen.now - switch.began
    text = f"mode {switch.to_mode} is in force after {format_duration(took)}"
    name = EventName.MODE_SWITCH
    if switch.rolling_back:
        name, text = EventName.ROLLBACK, f"rolled back: {text}"
    incident = desk.open_incident("", "", EventName.ROLLBACK)
    if incident is not None:
        desk.close_incident(incident.id, EventName.ROLLBACK, text)
    elif _touched(switch.changes):
        desk.tell(name, Severity.NOTICE, text, took_ms=took * 1000)
    desk.state = replace(desk.state, switch=None, good=desk.settings, unsettled=frozenset())
    if switch.rolling_back:
        _record(desk, switch, Ended.ROLLED_BACK, switch.rolling_back)
    else:
        _record(desk, switch, Ended.IN_FORCE, "")


def _failed_gate(desk: Desk, switch: Switch, why: str) -> Settings | None:
    good = desk.state.good
    unsettled = frozenset(_touched(switch.changes))
    state = replace(desk.state, switch=None, unsettled=unsettled)
    if desk.seen.settings_queued:
        text = f"mode {switch.to_mode} did not come up ({why}); the newer file follows"
        desk.tell(EventName.ROLLBACK, Severity.WARNING, text, reason=why)
        desk.state = state
        _record(desk, switch, Ended.SUPERSEDED, why)
        return None
    if switch.rolling_back or good is None or same(good, desk.settings):
        text = f"mode {switch.to_mode} did not come up whole: {why}; nothing to go back to"
        desk.tell(EventName.ROLLBACK, Severity.CRITICAL, text, reason=why)
        desk.state = state
        if switch.rolling_back:
            why = f"{switch.rolling_back}; and going back: {why}"
        _record(desk, switch, Ended.FAILED, why)
        return None
    text = f"mode {switch.to_mode} did not come up: {why}; mode {good.mode} comes back"
    desk.raise_incident(EventName.ROLLBACK, Severity.ERROR, text, evidence=(("reason", why),))
    desk.state = replace(state, rollback=why)
    _record(desk, switch, Ended.ROLLED_BACK, why)
    return good


def _record(desk: Desk, switch: Switch, outcome: Ended, why: str) -> None:
    """Remember what came of it. A rollback belongs to the reload that it undoes."""
    last = desk.state.last
    undone = last if switch.rolling_back and last and last.outcome is Ended.ROLLED_BACK else None
    now = desk.seen
    desk.state = replace(
        desk.state,
        last=SwitchResult(
            from_mode=undone.from_mode if undone else switch.from_mode,
            to_mode=undone.to_mode if undone else switch.to_mode,
            loaded_at=undone.loaded_at if undone else switch.loaded_at,
            ended=now.wall,
            took_s=now.now - switch.began + (undone.took_s if undone else 0.0),
            outcome=outcome,
            reason=why,
        ),
    )
