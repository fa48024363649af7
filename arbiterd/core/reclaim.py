"""A reclaim from its order to the moment its bytes are seen back: one at a time per device.

An engine's word is no proof: Ollama unloads when it pleases, a sleep may fail half-way, the dead
keep their memory for seconds. So each reclaim states what it expects and is judged by the ledger.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import breaker, pressure, sleeping
from arbiterd.core.desk import Desk
from arbiterd.core.failing import give_back
from arbiterd.core.limits import (
    BYTES_BACK_PINNED_S,
    BYTES_BACK_S,
    DISRUPTIVE_MAX,
    ESCALATE_S,
    LEAD_MAX_S,
    SEEN_BACK,
    TRIM_IGNORED_S,
)
from arbiterd.core.placement import headroom_bytes
from arbiterd.core.planning import engine_url
from arbiterd.core.state import (
    LADDER,
    After,
    BackendState,
    DeviceState,
    DrainCause,
    Reclaim,
    Sleep,
    serves,
)
from arbiterd.core.victim import Option, recent, resident
from arbiterd.engines import engine_of
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.engines.ollama_names import same_model
from arbiterd.model.actions import KillProcesses, UnloadModel
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuProcess
from arbiterd.model.events import ActionRecord, EventName, Severity
from arbiterd.model.pressure import Rung
from arbiterd.model.reading import Known
from arbiterd.quantities import format_duration, format_size

RUNNER = "runner"  # kind of a KILL event: one child of an engine, the engine itself goes on
DISRUPTIVE = (Rung.SLEEP, Rung.RESTART, Rung.STOP)
_OURS = (After.BACKOFF, After.FAILED, After.SLEEPING)  # where a drain of the ladder leads


def begin(
    desk: Desk, uuid: str, state: DeviceState, option: Option, *, drain_s: float
) -> DeviceState:
    """Order it. ``drain_s``: how long the requests of a restarted backend may still run."""
    one, now = option.candidate, desk.seen.now
    incident = desk.open_incident("", uuid, EventName.PRESSURE_RISE)
    patience = BYTES_BACK_PINNED_S if one.rung is Rung.SLEEP else BYTES_BACK_S
    reclaim = Reclaim(
        rung=one.rung,
        backend=one.backend,
        reason=one.reason,
        began=now,
        began_wall=desk.seen.wall,
        expected=one.bytes_expected,
        used=state.used.get(one.backend, 0),
        deadline=now + patience + drain_s,
        incident=incident.id if incident else "",
        model=option.model,
    )
    _tell_begin(desk, uuid, reclaim)
    match one.rung:
        case Rung.TRIM:
            reclaim = _unload(desk, uuid, reclaim)
        case Rung.SLEEP:
            sleeping.ask(desk, desk.backends[one.backend], LADDER, drain_s)
        case _:
            _restart(desk, reclaim, drain_s)
    done = {**state.done, _key(reclaim): now}
    if one.rung not in DISRUPTIVE:
        return replace(state, reclaim=reclaim, done=done)
    restarts = state.restarts
    if one.rung is not Rung.SLEEP:
        mine = (*recent(restarts.get(one.backend, ()), now), now)
        restarts = {**restarts, one.backend: mine}
    disruptive = (*recent(state.disruptive, now), now)
    return replace(state, reclaim=reclaim, done=done, restarts=restarts, disruptive=disruptive)


def follow(desk: Desk, uuid: str, state: DeviceState) -> DeviceState:
    """One tick of the reclaim in flight: has it worked, must more be done, is it over."""
    reclaim = state.reclaim
    if reclaim is None:
        return state
    if reclaim.rung is Rung.TRIM:
        return _follow_trim(desk, uuid, state, reclaim)
    backend = desk.backends.get(reclaim.backend)
    if backend is not None and _mended(desk, state, backend):
        counted = reclaim.rung is not Rung.SLEEP  # a sleep is no failure
        back = replace(
            backend,
            after=After.STOPPED,
            deadline=None,
            sleep=Sleep(),
            failures=backend.failures[:-1] if counted else backend.failures,
        )
        desk.enter(back, Phase.READY, "")
        return _end(desk, uuid, state, reclaim, "called off: it is within its cap again", 0)
    draining = backend is not None and backend.phase is Phase.DRAINING
    if draining and backend is not None and _no_more_time(desk, uuid, state, backend.name):
        desk.put(replace(backend, deadline=desk.seen.now))
    asleep = reclaim.rung is Rung.SLEEP and backend is not None
    moving = backend is not None and backend.phase in (Phase.DRAINING, Phase.STOPPING)
    if asleep and backend is not None and sleeping.busy(backend):
        moving = True
    if not moving:
        freed = reclaim.used - (state.used.get(reclaim.backend, 0) if asleep else 0)
        return _end(desk, uuid, state, reclaim, "done", freed)
    if desk.seen.now >= reclaim.deadline:
        return _end(desk, uuid, state, reclaim, "its bytes are not back in time", freed_of(state))
    return state


def spared(desk: Desk, backend: BackendState) -> bool:
    """Whether the ladder, which comes after the backends' steps, will call its end off in this tick."""
    if desk.seen.stopping:
        return False
    return any(
        one.reclaim is not None
        and one.reclaim.backend == backend.name
        and one.reclaim.rung is not Rung.TRIM
        and _mended(desk, one, backend)
        for one in desk.devices.values()
    )


def _mended(desk: Desk, state: DeviceState, backend: BackendState) -> bool:
    """Whether its requests still end while it has given back what it held above its cap: then it is
    one of those that are never touched for a neighbour.
    """
    if backend.phase is not Phase.DRAINING or backend.deadline is None or backend.parked:
        return False
    if backend.name not in desk.placements or backend.after not in _OURS:
        return (
            False  # a reload or an operator has it stopped meanwhile: that drain is not ours to end
        )
    fresh = state.seen_at == state.last_sample_at  # over_since leaves out those that drain
    cap = desk.placements[backend.name].cap_bytes
    return fresh and backend.name in state.used and state.used[backend.name] <= cap


def _no_more_time(desk: Desk, uuid: str, state: DeviceState, name: str) -> bool:
    """Whether one of its cards has become too full to wait for requests: faster than was thought, or
    by others.
    """
    placement = desk.placements.get(name)
    others = {
        one: desk.devices[one]
        for one in (placement.devices if placement else ())
        if one in desk.devices
    }
    return any(_too_full(desk, one, its) for one, its in {**others, uuid: state}.items())


def _too_full(desk: Desk, uuid: str, state: DeviceState) -> bool:
    seen = desk.seen.devices[uuid]
    if not pressure.confirmed(state) or not isinstance(seen.memory, Known):
        return False
    headroom = headroom_bytes(desk.settings.arbiter.headroom_bytes, seen.device)
    return seen.memory.value.free_bytes < pressure.critical_free_bytes(headroom)


def hear(desk: Desk, state: DeviceState) -> tuple[DeviceState, str]:
    """The outcome of the action under way, heard once and also while blind; "" or why it was refused."""
    reclaim = state.reclaim
    outcome = desk.outcome_of(reclaim.action) if reclaim is not None else None
    if reclaim is None or outcome is None:
        return state, ""
    desk.note_outcome(outcome)
    stage = "waits for its bytes" if reclaim.killed else "asked, waits for /api/ps and its bytes"
    if not outcome.ok:
        stage = outcome.detail
    heard = replace(reclaim, action="", told=desk.seen.now, stage=stage)
    return replace(state, reclaim=heard), "" if outcome.ok else outcome.detail


def freed_of(state: DeviceState) -> int:
    """Bytes the target gave up so far, less what is still on its way."""
    reclaim = state.reclaim
    if reclaim is None or state.seen_at <= reclaim.began:
        return 0
    return max(0, reclaim.used - state.used.get(reclaim.backend, 0) - state.releasing)


# -- trim --------------------------------------------------------------------------------------------
def _unload(desk: Desk, uuid: str, reclaim: Reclaim) -> Reclaim:
    wanted = desk.settings.active.backends[reclaim.backend]
    action = UnloadModel(
        id=desk.action_id("unload", reclaim.backend, uuid),
        backend=reclaim.backend,
        gpu=uuid,
        reason=reclaim.reason,
        url=engine_url(desk.settings, wanted),
        model=reclaim.model,
        requests=engine_of(wanted.kind).unload_requests(wanted, reclaim.model),
    )
    desk.act(action, reclaim.incident, bytes_expected=reclaim.expected)
    return replace(reclaim, action=action.id)


def _follow_trim(desk: Desk, uuid: str, state: DeviceState, reclaim: Reclaim) -> DeviceState:
    now, freed = desk.seen.now, freed_of(state)
    state, refused = hear(desk, state)
    reclaim = state.reclaim or reclaim
    if refused:
        return _end(desk, uuid, state, reclaim, refused, freed)
    backend = desk.backends.get(reclaim.backend)
    if freed >= SEEN_BACK * reclaim.expected:
        return _end(desk, uuid, state, reclaim, "done", freed)
    here = backend is not None and (
        serves(backend) or (backend.adopted and backend.phase is Phase.STARTING)
    )
    if not here:
        return _end(desk, uuid, state, reclaim, "its engine is gone", freed)
    if now >= reclaim.deadline:
        return _end(desk, uuid, state, reclaim, "its bytes are not back in time", freed)
    waited = now - reclaim.began
    guilty = any(pressure.is_over(state, name, now) for name in state.over_since)
    if guilty and pressure.confirmed(state) and waited >= ESCALATE_S and not state.releasing:
        return _end(desk, uuid, state, reclaim, "growth goes on", freed)
    told = reclaim.told if reclaim.told is not None else now
    if not reclaim.killed and now - told >= TRIM_IGNORED_S and not freed:
        return _kill_runner(desk, uuid, state, reclaim)
    return state


def _kill_runner(desk: Desk, uuid: str, state: DeviceState, reclaim: Reclaim) -> DeviceState:
    """The unload was not obeyed: end that one child (ollama #7779: a runner that is 'Stopping...' for
    ever; killing it alone clears it, Ollama loads again on demand).
    """
    if len(recent(state.disruptive, desk.seen.now)) >= DISRUPTIVE_MAX:
        why = f"the unload was not obeyed, and {DISRUPTIVE_MAX} interventions were made already"
        return _end(
            desk, uuid, state, reclaim, f"{why}: manual intervention required", freed_of(state)
        )
    runner = _runner(desk, uuid, reclaim)
    if runner is None or runner.ref is None:
        why = "the unload was not obeyed and its runner cannot be told from others"
        return _end(desk, uuid, state, reclaim, why, freed_of(state))
    text = f"{reclaim.model} stays although it was told to unload: pid {runner.pid} is killed alone"
    action = KillProcesses(
        desk.action_id("kill", reclaim.backend, uuid), reclaim.backend, uuid, text, (runner.ref,)
    )
    desk.act(action, reclaim.incident, bytes_expected=reclaim.expected)
    desk.tell(
        EventName.KILL,
        Severity.WARNING,
        f"{reclaim.backend}: {text}",
        reclaim.backend,
        incident=reclaim.incident,
        action=action.id,
        gpu=uuid,
        bytes_expected=reclaim.expected,
        kind=RUNNER,
    )
    now = desk.seen.now
    changed = replace(reclaim, action=action.id, killed=True, stage="its runner is killed")
    disruptive = (*recent(state.disruptive, now), now)
    return replace(state, reclaim=changed, disruptive=disruptive)


def _runner(desk: Desk, uuid: str, reclaim: Reclaim) -> GpuProcess | None:
    """The child that holds this model: the only one, or the one whose size fits the model alone."""
    seen = desk.seen.devices[uuid].processes
    mine = [p for p in seen.value if p.holder == reclaim.backend] if isinstance(seen, Known) else []
    if len(mine) == 1:
        return mine[0]
    models = resident(desk, reclaim.backend)
    size = next((m.vram_bytes for m in models if same_model(m.name, reclaim.model)), None)
    sized = [p for p in mine if isinstance(p.used_bytes, Known)]
    if size is None or not sized:
        return None
    found = sorted(sized, key=lambda p: abs(_size(p) - size))
    close = [p for p in found if abs(_size(p) - size) <= size // 4]
    return close[0] if len(close) == 1 else None


def _size(process: GpuProcess) -> int:
    return process.used_bytes.value if isinstance(process.used_bytes, Known) else 0


# -- restart and stop ---------------------------------------------------------------------------------
def _restart(desk: Desk, reclaim: Reclaim, drain_s: float) -> None:
    """The guilty one goes, is counted as a failure of its own, and comes back after its back-off."""
    backend = desk.backends[reclaim.backend]
    wanted = desk.settings.active.backends[reclaim.backend]
    summary = f"ended by the arbiter before the card overflowed: {reclaim.reason}"
    cause = Cause(CauseClass.OVER_CAP, "", summary)
    counted, open_ = breaker.failed(
        replace(backend, cause=cause), wanted, desk.seen.now, desk.seen.jitter
    )
    stop = open_ or reclaim.rung is Rung.STOP
    if stop:
        counted = replace(counted, not_before=breaker.rest_until(desk.seen.now))
    after = After.FAILED if stop else After.BACKOFF
    if drain_s > 0:
        changed = replace(
            counted,
            after=after,
            deadline=desk.seen.now + drain_s,
            pending="",
            drain=DrainCause.PRESSURE,
        )
        desk.enter(changed, Phase.DRAINING, summary)
    else:
        give_back(desk, counted, after, summary, grace_s=0.0)


# -- telling ------------------------------------------------------------------------------------------
def _key(reclaim: Reclaim) -> str:
    model = f":{reclaim.model}" if reclaim.model else ""
    return f"{reclaim.rung}:{reclaim.backend}{model}"


def _tell_begin(desk: Desk, uuid: str, reclaim: Reclaim) -> None:
    index = desk.seen.devices[uuid].device.index
    what = f"{reclaim.rung} of {reclaim.model or reclaim.backend}"
    severity = Severity.ERROR if reclaim.rung in DISRUPTIVE else Severity.WARNING
    desk.tell(
        EventName.RECLAIM,
        severity,
        f"GPU {index}: {what}, {format_size(reclaim.expected)} expected: {reclaim.reason}",
        reclaim.backend,
        incident=reclaim.incident,
        gpu=uuid,
        reason=reclaim.reason,
        bytes_expected=reclaim.expected,
        kind=reclaim.rung.value,
    )


def _end(
    desk: Desk, uuid: str, state: DeviceState, reclaim: Reclaim, outcome: str, freed: int
) -> DeviceState:
    took = desk.seen.now - reclaim.began
    worked = freed >= SEEN_BACK * reclaim.expected
    index = desk.seen.devices[uuid].device.index
    what = f"{reclaim.rung} of {reclaim.model or reclaim.backend}"
    text = (
        f"GPU {index}: {what}: {outcome}, {format_size(freed)} of {format_size(reclaim.expected)} "
        f"back in {format_duration(took)}"
    )
    desk.tell(
        EventName.RECLAIM,
        Severity.NOTICE if worked else Severity.WARNING,
        text,
        reclaim.backend,
        incident=reclaim.incident,
        gpu=uuid,
        reason=outcome,
        bytes_expected=reclaim.expected,
        bytes_freed=freed,
        took_ms=took * 1000,
        kind=reclaim.rung.value,
    )
    done = state.done
    if reclaim.rung is Rung.TRIM and not worked:
        done = {**done, f"failed {_key(reclaim)}": desk.seen.now}
    record = ActionRecord(
        id=desk.action_id("reclaim", reclaim.backend, uuid),
        action=f"Reclaim {reclaim.rung}",
        target=reclaim.model or reclaim.backend,
        reason=reclaim.reason,
        started_at=reclaim.began_wall,
        took_ms=took * 1000,
        bytes_expected=reclaim.expected,
        bytes_freed=freed,
        outcome=outcome,
    )
    desk.record(reclaim.incident, record)
    lead = pressure.lead_of(took, state.lead_s, LEAD_MAX_S) if worked else state.lead_s
    return replace(state, reclaim=None, lead_s=lead, done=done)
