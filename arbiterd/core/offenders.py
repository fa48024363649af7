"""Naming those who hold more than they were granted: backends over their caps, and strangers.

A stranger is named within a sample of its jump (pid, user, command, unit) and never signalled.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import pressure
from arbiterd.core.desk import Desk
from arbiterd.core.failing import TROUBLE
from arbiterd.core.gate import describe, holders
from arbiterd.core.ledger import FOREIGN
from arbiterd.core.limits import CALM_S, FOREIGN_SAID_BYTES, OVER_S
from arbiterd.core.state import DeviceState
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known
from arbiterd.quantities import format_size


def tell(desk: Desk, uuid: str, state: DeviceState) -> None:
    """Open and close the incidents of this device's offenders."""
    if state.seen_at != state.last_sample_at:
        return  # the list is older than the memory: whose the bytes are is not known yet
    _foreign(desk, uuid, state)
    _over(desk, uuid, state)


def who(seen: DeviceObservation) -> str:
    """Everybody who holds memory there, biggest first."""
    return holders(seen)


def _foreign(desk: Desk, uuid: str, state: DeviceState) -> None:
    seen = desk.seen.devices[uuid]
    allow = desk.settings.foreign_allow_bytes
    held = state.used.get(FOREIGN, 0)
    open_ = desk.open_incident("", uuid, EventName.FOREIGN_MEMORY)
    if open_ is None and held > allow + FOREIGN_SAID_BYTES:
        strangers = _strangers(seen)
        text = (
            f"GPU {seen.device.index}: {format_size(held)} are held by processes that are none of "
            f"ours ({format_size(allow)} allowed): {', '.join(text for _, text in strangers)}"
        )
        desk.raise_incident(
            EventName.FOREIGN_MEMORY,
            Severity.WARNING,
            text,
            gpu=uuid,
            pids=tuple(pid for pid, _ in strangers),
            evidence=tuple((f"pid {pid}", text) for pid, text in strangers),
        )
    since = state.foreign_calm_at
    if held > allow:
        since = None
    elif since is None:
        since = desk.seen.now
    if since != state.foreign_calm_at:
        desk.devices[uuid] = replace(desk.devices[uuid], foreign_calm_at=since)
    if open_ is not None and since is not None and desk.seen.now - since >= CALM_S:
        text = f"GPU {seen.device.index}: foreign memory is within {format_size(allow)} again"
        desk.close_incident(open_.id, EventName.RECOVERED, text)


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


def _over(desk: Desk, uuid: str, state: DeviceState) -> None:
    now = desk.seen.now
    for name in state.over_since:
        if name not in desk.placements:  # a reload has just dropped it; no newer sample yet
            continue
        if pressure.over_for(state, name, now) < OVER_S or desk.open_incident(name, "", *TROUBLE):
            continue
        cap = desk.placements[name].cap_bytes
        over = format_size(state.used.get(name, 0) - cap)
        speed = pressure.slope_of(state, name)
        grows = f", growing {format_size(int(speed))}/s" if speed and speed > 0 else ""
        text = f"{name} holds {over} more than its cap of {format_size(cap)}{grows}"
        desk.raise_incident(EventName.LEAK, Severity.WARNING, text, backend=name, gpu=uuid)
    for incident in [
        i for i in desk.incidents if i.closed_at is None and i.event is EventName.LEAK
    ]:
        backend = desk.backends.get(incident.backend)
        if incident.gpu != uuid or incident.backend in state.over_since:
            continue
        if backend is None or backend.phase in (Phase.READY, Phase.SLEEPING):
            text = f"{incident.backend} is within its cap again"
            desk.close_incident(incident.id, EventName.RECOVERED, text)
