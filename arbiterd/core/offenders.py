"""Naming those who hold more than they were granted: backends over their caps, and strangers.

A stranger is named within a sample of its jump (pid, user, command, unit) and never signalled.
"""

from __future__ import annotations

from arbiterd.core import pressure
from arbiterd.core.facts import Facts
from arbiterd.core.gate import describe, holders
from arbiterd.core.ledger import FOREIGN
from arbiterd.core.limits import CALM_S, FOREIGN_SAID_BYTES, OVER_S
from arbiterd.core.notes import About, Close, Note, Notes, trouble
from arbiterd.core.state import DeviceState, updated
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known
from arbiterd.quantities import format_size


def judge(facts: Facts, uuid: str, state: DeviceState) -> tuple[DeviceState, Notes]:
    """The incidents of this device's offenders."""
    if state.seen_at != state.last_sample_at:
        return state, ()  # the list is older than the memory: whose the bytes are is not known yet
    state, foreign = _foreign(facts, uuid, state)
    return state, (*foreign, *_over(facts, uuid, state))


def who(seen: DeviceObservation) -> str:
    """Everybody who holds memory there, biggest first."""
    return holders(seen)


def _foreign(facts: Facts, uuid: str, state: DeviceState) -> tuple[DeviceState, Notes]:
    seen, now = facts.seen.devices[uuid], facts.seen.now
    allow = facts.settings.foreign_allow_bytes
    held = state.used.get(FOREIGN, 0)
    about, notes = About((EventName.FOREIGN_MEMORY,), gpu=uuid), list[Note]()
    since = None if held > allow else state.foreign_calm_at
    if held <= allow and since is None:
        since = now
    if held > allow + FOREIGN_SAID_BYTES:
        strangers = _strangers(seen)
        text = (
            f"GPU {seen.device.index}: {format_size(held)} are held by processes that are none of "
            f"ours ({format_size(allow)} allowed): {', '.join(text for _, text in strangers)}"
        )
        notes.append(
            facts.open(
                EventName.FOREIGN_MEMORY,
                Severity.WARNING,
                text,
                about,
                pids=tuple(pid for pid, _ in strangers),
                evidence=tuple((f"pid {pid}", text) for pid, text in strangers),
            )
        )
    if since is not None and now - since >= CALM_S:
        text = f"GPU {seen.device.index}: foreign memory is within {format_size(allow)} again"
        notes.append(Close(about, EventName.RECOVERED, text))
    return updated(state, foreign_calm_at=since), tuple(notes)


def _strangers(seen: DeviceObservation) -> list[tuple[int, str]]:
    """(pid, in words), biggest first."""
    if not isinstance(seen.processes, Known):
        return []
    found = [
        (one.used_bytes.value if isinstance(one.used_bytes, Known) else 0, one)
        for one in seen.processes.value
        if not one.holder
    ]
    found.sort(key=lambda pair: (-pair[0], pair[1].pid))
    return [(one.pid, f"{describe(one)} {format_size(size)}") for size, one in found]


def _over(facts: Facts, uuid: str, state: DeviceState) -> Notes:
    now, notes = facts.seen.now, list[Note]()
    for name in state.over_since:
        if name not in facts.placements:  # a reload has just dropped it; no newer sample yet
            continue
        if pressure.over_for(state, name, now) < OVER_S:
            continue
        cap = facts.placements[name].cap_bytes
        over = format_size(state.used.get(name, 0) - cap)
        speed = pressure.slope_of(state, name)
        grows = f", growing {format_size(int(speed))}/s" if speed and speed > 0 else ""
        text = f"{name} holds {over} more than its cap of {format_size(cap)}{grows}"
        event, severity = EventName.LEAK, Severity.WARNING
        notes.append(facts.open(event, severity, text, trouble(name), gpu=uuid))
    for one in facts.incidents:
        leak = one.closed_at is None and one.event is EventName.LEAK and one.gpu == uuid
        if not leak or one.backend in state.over_since:
            continue
        backend = facts.backends.get(one.backend)
        if backend is None or backend.phase in (Phase.READY, Phase.SLEEPING):
            about = About((EventName.LEAK,), one.backend, uuid)
            text = f"{one.backend} is within its cap again"
            notes.append(Close(about, EventName.RECOVERED, text))
    return tuple(notes)
