"""What is published of each backend: phase, whether it takes new work, why not, when to ask again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from arbiterd.core.backend import judge, progress
from arbiterd.core.backend.backend_axes import SleepStage
from arbiterd.core.backend.backend_state import BackendState, drained
from arbiterd.core.facts import Facts
from arbiterd.core.incidents import dwell_s
from arbiterd.core.limits import (
    DISRUPTIVE_MAX,
    FIRST_START_GUESS_S,
    RETRY_AFTER_MAX_S,
    WAKE_CHECK_S,
)
from arbiterd.core.memory import brakes, gpus, ledger, pressure
from arbiterd.core.memory.device_state import Braked, DeviceState
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.reclaim import freed_of
from arbiterd.core.memory.victim import recent
from arbiterd.core.traffic.evidence import outstanding, traffic
from arbiterd.model.backend import BackendView, DeviceView, LedgerRow, Phase
from arbiterd.model.events import EventName
from arbiterd.model.launch import UnitState
from arbiterd.model.pressure import BrakesView, Holder, PressureView, ReclaimView
from arbiterd.model.reading import Known
from arbiterd.model.settings import Kind


def device_view(facts: Facts, uuid: str, rows: tuple[LedgerRow, ...]) -> DeviceView:
    """One device as published, with the numbers behind its band."""
    state = facts.device(uuid)
    seen = facts.seen.devices[uuid]
    headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
    memory = seen.memory
    detail = PressureView(
        solvency_bytes=state.sampled.solvency,
        calm_s=dwell_s(facts.incidents, EventName.PRESSURE_RISE, uuid, facts.seen.wall),
        free_bytes=memory.value.free_bytes if isinstance(memory, Known) else None,
        tight_below=pressure.tight_below(headroom),
        calm_above=pressure.calm_above(headroom),
        critical_below=pressure.critical_free_bytes(headroom),
        excess_bytes=state.sampled.excess,
        slope=state.sampled.slope,
        time_to_full_s=state.sampled.time_to_full_s,
        lead_s=state.ladder.lead_s,
        holders=_trends(facts, state, rows),
        candidates=state.ladder.candidates,
        reclaim=_reclaim_view(state),
        braked={name: text for name, one in state.ladder.braked.items() if (text := _braked(one))},
        loads_held=state.ladder.loads_held,
        disruptive=len(recent(state.ladder.disruptive, facts.seen.now)),
        disruptive_max=DISRUPTIVE_MAX,
        fault=state.fault.text,
        capacity_bytes=seen.device.capacity_bytes,
        releasing_bytes=state.sampled.releasing,
        brakes={
            name: BrakesView(one.hold, one.limit, bool(one.freezing))
            for name, one in state.ladder.braked.items()
            if _braked(one)
        },
    )
    detail = _terms(facts, state, detail)
    return DeviceView(uuid, state.sampled.pressure, rows, state.sampled.time_to_full_s, detail)


def _terms(facts: Facts, state: DeviceState, detail: PressureView) -> PressureView:
    """Solvency's terms, of the sample that it was computed from."""
    if state.sampled.solvency is None:
        return detail
    foreign = max(0, state.sampled.used.get(ledger.FOREIGN, 0) - facts.settings.foreign_allow_bytes)
    rest = max(0, state.sampled.used.get(ledger.UNATTRIBUTED, 0) - state.sampled.releasing)
    granted = detail.capacity_bytes - state.sampled.solvency - foreign - rest
    return replace(
        detail, granted_bytes=granted, foreign_over_bytes=foreign, unattributed_bytes=rest
    )


def _trends(facts: Facts, state: DeviceState, rows: tuple[LedgerRow, ...]) -> tuple[Holder, ...]:
    """Those who hold more than they were granted."""
    if not state.sampled.excess:
        return ()
    out = []
    for row in rows:
        used, cap = state.sampled.used.get(row.holder, 0), row.cap_bytes or 0
        if row.holder == ledger.FOREIGN:
            over = used - facts.settings.foreign_allow_bytes
        elif row.holder == ledger.UNATTRIBUTED:
            over = used - state.sampled.releasing
        else:
            over = used - cap if cap else 0
        if over > 0:
            speed = pressure.slope_of(state, row.holder)
            out.append(Holder(row.holder, over, speed, pressure.grows(state, row.holder)))
    return tuple(out)


def _reclaim_view(state: DeviceState) -> ReclaimView | None:
    one = state.ladder.reclaim
    if one is None:
        return None
    freed = freed_of(state)
    what = one.model or one.backend
    return ReclaimView(
        one.rung, what, one.reason, one.began_wall, one.expected, freed, one.stage, one.incident
    )


def _braked(one: Braked) -> str:
    parts = [one.hold] if one.hold else []
    if one.limit is not None:
        what = "1 request" if one.limit == 1 else f"{one.limit} requests"
        parts.append(f"throttled to {what} at a time")
    if one.freezing:
        parts.append("frozen for a moment")
    return "; ".join(parts)


def used_by_holder(ledgers: Mapping[str, tuple[LedgerRow, ...]]) -> dict[str, int | None]:
    """Bytes used on all devices together, by holder; None when one of its devices cannot be read."""
    out: dict[str, int | None] = {}
    for rows in ledgers.values():
        for row in rows:
            before = out.get(row.holder, 0)
            unknown = before is None or (row.used_bytes is None and row.holder != ledger.HEADROOM)
            out[row.holder] = None if unknown else (before or 0) + (row.used_bytes or 0)
    return out


def backend_view(facts: Facts, backend: BackendState, used: int | None) -> BackendView:
    """One backend as published; ``used``: the bytes that the ledgers say it holds, None: unknown."""
    wanted = facts.wanted(backend.name)
    placement = facts.placements.get(backend.name)
    unit = facts.unit(backend.name)
    running, waiting = outstanding(facts, backend.name)
    if placement and any(uuid not in facts.seen.devices for uuid in placement.devices):
        used = None  # a device that was never seen by this daemon: nothing tells what is held there
    reason = not_accepting(facts, backend) or shut(facts, backend.name)
    full = "" if reason else _full(facts, backend.name)
    return BackendView(
        name=backend.name,
        kind=wanted.kind.value if wanted else "",
        phase=backend.phase,
        drained=drained(backend),
        accepting=not reason and not full,
        reason=reason or full or backend.vitals.degraded,
        retry_after_s=retry_after_s(facts, backend) if reason else 1 if full else 0,
        since=backend.since_wall or facts.seen.wall,
        devices=placement.devices if placement else (),
        cap_bytes=placement.cap_bytes if placement else 0,
        used_bytes=used,
        pids=unit.pids,
        restarts=backend.history.restarts,
        in_flight=running,
        queued=waiting,
        degraded=backend.vitals.degraded,
        learned_bytes=_learned(facts, backend.name),
        throttled=_throttled(facts, backend.name),
        priority=wanted.priority if wanted else 0,
        intent=backend.run.intent,
        canaries=dict.fromkeys(backend.canaries.kept, "") | dict(backend.canaries.without),
        start_took_s=backend.history.start_took_s,
        stop_took_s=backend.history.stop_took_s,
    )


def _learned(facts: Facts, name: str) -> int:
    """Bytes taken off its configured cap."""
    configured, placed = facts.configured.get(name), facts.placements.get(name)
    return configured.cap_bytes - placed.cap_bytes if configured and placed else 0


def _throttled(facts: Facts, name: str) -> int | None:
    wanted = facts.wanted(name)
    if wanted is None:
        return None
    found = brakes.limit(facts, name, wanted.max_in_flight)
    return found if found < wanted.max_in_flight else None


def not_accepting(facts: Facts, backend: BackendState) -> str:
    """Why no new work is let in, "" when it is."""
    if backend.phase is not Phase.READY:
        reason = backend.reason or backend.phase.value
        hung = progress.why_hung(backend)
        return f"{reason}; {hung}" if hung else reason
    if facts.unit(backend.name).state is UnitState.STOPPING:
        return "its unit is being stopped"  # vLLM answers 500 to new work, and 200 on /health
    if not judge.accepting(backend.vitals):
        return backend.vitals.why
    return gpus.broken(facts, backend.name) or brakes.held(facts, backend.name)


def shut(facts: Facts, name: str) -> str:
    """Why its door is shut although the engine may be well, "" when it is open."""
    seen = facts.seen.gateway
    if not seen.enabled:
        return ""
    if seen.problem:
        return f"the gateway does not serve: {seen.problem}"
    taken = seen.taken_doors.get(name)
    if taken:
        return f"its door stays shut: {taken}"
    if name in seen.opening:
        return "its door is being opened"
    backend, wanted = facts.backends.get(name), facts.wanted(name)
    if backend is None or backend.phase is not Phase.READY:
        return ""
    if seen.gate_problem and wanted is not None and wanted.kind is Kind.OLLAMA:
        return f"the load gate does not serve: {seen.gate_problem}"
    return backend.vitals.door_why or unreached(facts, name)


def unreached(facts: Facts, name: str) -> str:
    """Whether HAProxy's own checks find a port of this engine shut: its door is 503 then, whatever an
    older connection of ours still says.
    """
    seen = traffic(facts, name)
    return "its port takes no connections" if seen is not None and seen.engine_down else ""


def _full(facts: Facts, name: str) -> str:
    """Whether its queue at the door is full."""
    seen, wanted = traffic(facts, name), facts.wanted(name)
    if seen is None or wanted is None:
        return ""
    if seen.in_flight < seen.limit or seen.queued < wanted.max_queue:
        return ""
    return f"full: {seen.in_flight} in flight, {seen.queued} queued"


def retry_after_s(facts: Facts, backend: BackendState) -> int:
    """Whole seconds, 1 to 120: what is left of the start, of the back-off, of the release."""
    now = facts.seen.now
    start = backend.history.start_took_s or FIRST_START_GUESS_S
    wanted = facts.wanted(backend.name)
    match backend.phase:
        case Phase.STARTING:
            left = start - (now - backend.since)
        case Phase.BACKOFF | Phase.FAILED:
            left = backend.history.not_before - now + start
        case Phase.READY if not judge.accepting(backend.vitals):
            sick = backend.vitals.sick_since or now
            left = (wanted.stuck_after_s if wanted else 0) - (now - sick) + start
        case Phase.READY if brakes.held(facts, backend.name):
            left = brakes.held_for_s(facts, backend.name)
        case Phase.READY:
            left = start
        case Phase.SLEEPING if backend.sleep.stage in (SleepStage.WAKING, SleepStage.CHECKING):
            left = WAKE_CHECK_S
        case Phase.WAITING | Phase.STOPPING | Phase.DRAINING:
            left = start + 1
        case _:
            left = float(RETRY_AFTER_MAX_S)
    return max(1, min(RETRY_AFTER_MAX_S, round(min(left, RETRY_AFTER_MAX_S))))
