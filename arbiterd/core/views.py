"""What is published of each backend: phase, whether it takes new work, why not, when to ask again."""

from __future__ import annotations

from arbiterd.core import judge
from arbiterd.core.desk import Desk
from arbiterd.core.evidence import outstanding, traffic
from arbiterd.core.limits import FIRST_START_GUESS_S, RETRY_AFTER_MAX_S
from arbiterd.core.state import BackendState
from arbiterd.engines import engine_of
from arbiterd.model.backend import BackendView, LedgerRow, Phase


def backend_view(
    desk: Desk, backend: BackendState, ledgers: dict[str, tuple[LedgerRow, ...]]
) -> BackendView:
    """One backend as published."""
    wanted = desk.wanted(backend.name)
    placement = desk.placements.get(backend.name)
    unit = desk.unit(backend.name)
    running, waiting = outstanding(desk, backend.name)
    used = 0
    for rows in ledgers.values():
        used += sum(r.used_bytes or 0 for r in rows if r.holder == backend.name)
    reason = not_accepting(desk, backend) or shut(desk, backend.name)
    full = "" if reason else _full(desk, backend.name)
    return BackendView(
        name=backend.name,
        kind=wanted.kind.value if wanted else "",
        phase=backend.phase,
        accepting=not reason and not full,
        reason=reason or full or backend.vitals.degraded,
        retry_after_s=retry_after_s(desk, backend) if reason else 1 if full else 0,
        since=backend.since_wall or desk.seen.wall,
        devices=placement.devices if placement else (),
        cap_bytes=placement.cap_bytes if placement else 0,
        used_bytes=used,
        pids=unit.pids,
        restarts=backend.restarts,
        in_flight=running,
        queued=waiting,
        degraded=backend.vitals.degraded,
        priority=wanted.priority if wanted else 0,
    )


def not_accepting(desk: Desk, backend: BackendState) -> str:
    """Why no new work is let in, "" when it is."""
    if backend.phase is not Phase.READY:
        return backend.reason or backend.phase.value
    if not judge.accepting(backend.vitals):
        return backend.vitals.why
    wanted = desk.wanted(backend.name)
    if wanted and not backend.warm_done:
        model = engine_of(wanted.kind).warm_model(wanted)
        if model:
            return f"loading {model}"
    return ""


def shut(desk: Desk, name: str) -> str:
    """Why its door is shut although the engine may be well, "" when it is open."""
    seen = desk.seen.gateway
    if not seen.enabled:
        return ""
    if seen.problem:
        return f"the gateway does not serve: {seen.problem}"
    taken = seen.taken_doors.get(name)
    if taken:
        return f"its door stays shut: {taken}"
    return "its door is being opened" if name in seen.opening else ""


def _full(desk: Desk, name: str) -> str:
    """Whether its queue at the door is full."""
    seen, wanted = traffic(desk, name), desk.wanted(name)
    if seen is None or wanted is None:
        return ""
    if seen.in_flight < seen.limit or seen.queued < wanted.max_queue:
        return ""
    return f"full: {seen.in_flight} in flight, {seen.queued} queued"


def retry_after_s(desk: Desk, backend: BackendState) -> int:
    """Whole seconds, 1 to 120: what is left of the start, of the back-off, of the release."""
    now = desk.seen.now
    start = backend.start_took_s or FIRST_START_GUESS_S
    wanted = desk.wanted(backend.name)
    match backend.phase:
        case Phase.STARTING:
            left = start - (now - backend.since)
        case Phase.BACKOFF | Phase.FAILED:
            left = backend.not_before - now + start
        case Phase.READY if not judge.accepting(backend.vitals):
            sick = backend.vitals.sick_since or now
            left = (wanted.stuck_after_s if wanted else 0) - (now - sick) + start
        case Phase.READY:
            left = start
        case Phase.WAITING | Phase.STOPPING | Phase.DRAINING:
            left = start + 1
        case _:
            left = float(RETRY_AFTER_MAX_S)
    return max(1, min(RETRY_AFTER_MAX_S, round(min(left, RETRY_AFTER_MAX_S))))
