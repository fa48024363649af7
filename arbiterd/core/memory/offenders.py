"""Naming those who hold more than they were granted: backends over their caps, and strangers.

A stranger is named within a sample of its jump (pid, user, command, unit) and never signalled.
"""

from __future__ import annotations

from arbiterd.core.facts import Facts
from arbiterd.core.incidents import dwell_s, found
from arbiterd.core.limits import FLAT_S, FOREIGN_SAID_BYTES, OVER_S
from arbiterd.core.memory import lines, pressure
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.core.memory.gate import describe, holders
from arbiterd.core.memory.ledger import FOREIGN
from arbiterd.core.notes import About, Open, trouble
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation, GpuState
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.reading import Known
from arbiterd.quantities import format_size


def wrong(facts: Facts, uuid: str, state: DeviceState) -> list[Open]:
    """Who is over a bound on this device."""
    if not listed(facts, uuid, state):
        return []
    return [*_foreign(facts, uuid, state), *_over(facts, uuid, state)]


def listed(facts: Facts, uuid: str, state: DeviceState) -> bool:
    """Whether it is known whose the bytes are: the list is as new as the memory."""
    return judged(facts, uuid, state) and state.sampled.seen_at == state.sampled.last_at


def judged(facts: Facts, uuid: str, state: DeviceState) -> bool:
    """Whether anything is said of a device's memory at all: not blind, not while the daemon ends."""
    seen = facts.seen.devices.get(uuid)
    if seen is None or seen.device.mig_enabled or facts.seen.stopping:
        return False
    return bool(state.sampled.count) and seen.state is GpuState.OK


def calmed(facts: Facts, uuid: str, state: DeviceState) -> DeviceState:
    """With the moment since which foreign memory is within its allowance."""
    if not listed(facts, uuid, state):
        return state
    over = state.sampled.used.get(FOREIGN, 0) > facts.settings.foreign_allow_bytes
    calm = pressure.foreign_calm(state.sampled, over=over, now=facts.seen.now)
    return state.having(sampled=calm)


def who(seen: DeviceObservation) -> str:
    """Everybody who holds memory there, biggest first."""
    return holders(seen)


def _foreign(facts: Facts, uuid: str, state: DeviceState) -> tuple[Open, ...]:
    seen, name = facts.seen.devices[uuid], EventName.FOREIGN_MEMORY
    allow, held = facts.settings.foreign_allow_bytes, state.sampled.used.get(FOREIGN, 0)
    about = About((name,), gpu=uuid)
    if held <= allow + FOREIGN_SAID_BYTES or found(facts.incidents, about) is not None:
        return ()
    strangers = _strangers(seen)
    text = (
        f"GPU {seen.device.index}: {format_size(held)} are held by processes that are none of "
        f"ours ({format_size(allow)} allowed): {', '.join(text for _, text in strangers)}"
    )
    return (
        facts.open(
            name,
            Severity.WARNING,
            text,
            about,
            pids=tuple(pid for pid, _ in strangers),
            evidence=tuple((f"pid {pid}", text) for pid, text in strangers),
        ),
    )


def foreign_over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Within the allowance for long enough."""
    state = facts.device(one.gpu)
    since = state.sampled.foreign_calm_at if listed(facts, one.gpu, state) else None
    dwell = dwell_s(facts.incidents, one.event, one.gpu, facts.seen.wall)
    if since is None or facts.seen.now - since < dwell:
        return None
    index = facts.seen.devices[one.gpu].device.index
    allow = format_size(facts.settings.foreign_allow_bytes)
    return EventName.RECOVERED, f"GPU {index}: foreign memory is within {allow} again"


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


def _over(facts: Facts, uuid: str, state: DeviceState) -> list[Open]:
    now, leaks = facts.seen.now, list[Open]()
    for name in state.sampled.over_since:
        if name not in facts.placements:  # a reload has just dropped it; no newer sample yet
            continue
        lately = pressure.over_for(state, name, now) < OVER_S
        if lately or found(facts.incidents, trouble(name)) is not None:
            continue
        cap = facts.placements[name].cap_bytes
        if _flat(facts, state, name):
            continue
        over = format_size(state.sampled.used.get(name, 0) - cap)
        speed = pressure.slope_of(state, name)
        grows = f", growing {format_size(int(speed))}/s" if speed and speed > 0 else ""
        text = f"{name} holds {over} more than its cap of {format_size(cap)}{grows}"
        event, severity = EventName.LEAK, Severity.WARNING
        leaks.append(facts.open(event, severity, text, trouble(name), gpu=uuid))
    return leaks


def leak_over(facts: Facts, one: Incident) -> tuple[EventName, str] | None:
    """Within its cap, as it serves or sleeps."""
    state, backend = facts.device(one.gpu), facts.backends.get(one.backend)
    if not listed(facts, one.gpu, state):
        return None
    if one.backend in state.sampled.over_since and not _flat(facts, state, one.backend):
        return None
    if backend is not None and backend.phase not in (Phase.READY, Phase.SLEEPING):
        return None
    placed = facts.placements.get(one.backend)
    over = state.sampled.used.get(one.backend, 0) - (placed.cap_bytes if placed else 0)
    if placed is None or over <= 0:
        return EventName.RECOVERED, f"{one.backend} is within its cap again"
    text = (
        f"{one.backend} holds {format_size(over)} more than its cap and does not grow: its footprint; "
        f"memory of {format_size(placed.cap_bytes + over)} would book it"
    )
    return EventName.RECOVERED, text


def _flat(facts: Facts, state: DeviceState, name: str) -> bool:
    """It has not grown for FLAT_S, or not since it was ready, and is over its cap by no more than may be
    its footprint.
    """
    window, placed = state.sampled.windows.get(name, ()), facts.placements.get(name)
    if placed is None or not window:
        return False
    over, backend = state.sampled.used.get(name, 0) - placed.cap_bytes, facts.backends.get(name)
    grew_at = state.sampled.grew_at.get(name, float("-inf"))
    starts = backend is not None and backend.phase is Phase.STARTING
    as_it_came = starts or (backend is not None and (backend.run.ready_at or 0.0) >= grew_at - 1.0)
    still = as_it_came or facts.seen.now - grew_at >= FLAT_S  # grows now: ``grew_at`` is now
    return still and over <= lines.forgiven(placed.cap_bytes)
