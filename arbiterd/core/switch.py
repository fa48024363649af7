"""Switching layouts: a diff of intent, a gate that the new layout must pass, and the way back.

What is equal in both layouts is not touched. The rest is drained, stopped, released and started in
order by the lifecycle itself; this file says what a switch touches, when it has come through, when it
has failed, and that the layout before comes back then (design, section 7). A rollback has no rollback.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.desk import Desk
from arbiterd.core.intent import intent
from arbiterd.core.limits import (
    BLOCKED_AFTER_S,
    FIRST_START_GUESS_S,
    FIRST_STOP_GUESS_S,
    SWITCH_FAILURES,
)
from arbiterd.core.state import BackendState, Switch
from arbiterd.core.views import not_accepting
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState
from arbiterd.model.events import EventName, Severity
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change, Step, SwitchView
from arbiterd.units import format_duration

_RESTING = (Phase.STOPPED, Phase.BACKOFF, Phase.FAILED, Phase.WAITING)


def plan(settings: Settings, backends: dict[str, BackendState]) -> dict[str, Change]:
    """What these settings mean for every backend, by its intent."""
    out = {}
    for name, wanted in settings.active.backends.items():
        backend = backends.get(name)
        new = intent(wanted, settings.active.shares[name])
        if backend is None or (not backend.intent and backend.phase in _RESTING):
            out[name] = Change.START
        elif backend.intent == new:
            out[name] = Change.KEEP
        else:
            out[name] = Change.START if backend.phase in _RESTING else Change.RESTART
    for name, backend in backends.items():
        if name not in out and backend.phase is not Phase.STOPPED:
            out[name] = Change.STOP
    return out


def begin(desk: Desk, before: Settings | None) -> None:
    """Notice new settings; called before the backends are met."""
    settings, state = desk.settings, desk.state
    if state.first_tick or before is None:
        return
    if before.source.sha256 == settings.source.sha256 and before.mode == settings.mode:
        return
    back = state.rollback
    changes = plan(settings, desk.backends)
    touched: dict[str, Change] = {
        name: change for name, change in changes.items() if change is not Change.KEEP
    }
    if not touched:
        desk.state = replace(state, good=settings, rollback="")
        return
    switch = Switch(
        from_mode=before.mode,
        to_mode=settings.mode,
        began=desk.seen.now,
        began_wall=desk.seen.wall,
        deadline=desk.seen.now + _patience(settings, touched),
        changes=changes,
        failures={name: _failed(desk, name) for name in touched},
        rolling_back=back,
        estimated_s=estimate(desk, settings, touched),
    )
    desk.state = replace(state, switch=switch, rollback="")
    kept = [name for name, change in changes.items() if change is Change.KEEP]
    doing = ", ".join(f"{change} {name}" for name, change in touched.items())
    text = (
        f"mode {before.mode} → {settings.mode}: {doing}"
        + (f"; kept untouched: {', '.join(kept)}" if kept else "")
        + f"; about {format_duration(switch.estimated_s)}"
    )
    name = EventName.ROLLBACK if back else EventName.MODE_SWITCH
    desk.tell(name, Severity.WARNING if back else Severity.NOTICE, text, reason=back)


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
        doing = "gone" if backend is None else backend.phase.value
        if backend is not None and backend.reason and not done:
            doing += f": {backend.reason}"
        out.append(Step(name, change, done, doing))
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
    )


def estimate(desk: Desk, settings: Settings, touched: dict[str, Change]) -> float:
    """Seconds, from the engines' last stops and starts: one after the other on a device, side by side
    on different ones.
    """
    by_device: dict[str, float] = {}
    for name, change in touched.items():
        backend = desk.backends.get(name)
        share = settings.active.shares.get(name)
        device = str(share.gpus) if share else desk.gpu_of(name)
        took = 0.0
        if change in (Change.STOP, Change.RESTART):
            took += (backend.stop_took_s if backend else None) or FIRST_STOP_GUESS_S
        if change in (Change.START, Change.RESTART):
            took += (backend.start_took_s if backend else None) or FIRST_START_GUESS_S
        by_device[device] = by_device.get(device, 0.0) + took
    return max(by_device.values(), default=0.0)


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
            desk.state = replace(desk.state, switch=None, good=desk.settings)
            return
    desk.tell(name, Severity.NOTICE, text, took_ms=took * 1000)
    desk.state = replace(desk.state, switch=None, good=desk.settings)


def _failed_gate(desk: Desk, switch: Switch, why: str) -> Settings | None:
    good = desk.state.good
    if switch.rolling_back or good is None or good is desk.settings:
        text = f"mode {switch.to_mode} did not come up whole: {why}; nothing to go back to"
        desk.tell(EventName.ROLLBACK, Severity.CRITICAL, text, reason=why)
        desk.state = replace(desk.state, switch=None)
        return None
    if desk.seen.settings_queued:
        text = f"mode {switch.to_mode} did not come up ({why}); the newer file follows"
        desk.tell(EventName.ROLLBACK, Severity.WARNING, text, reason=why)
        desk.state = replace(desk.state, switch=None)
        return None
    text = f"mode {switch.to_mode} did not come up: {why}; mode {good.mode} comes back"
    desk.raise_incident(EventName.ROLLBACK, Severity.ERROR, text, evidence=(("reason", why),))
    desk.state = replace(desk.state, switch=None, rollback=why)
    return good
