"""A reclaim from its order to the moment its bytes are seen back: one at a time per device.

An engine's word is no proof: Ollama unloads when it pleases, a sleep may fail half-way, the dead
keep their memory for seconds. So each reclaim states what it expects and is judged by the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arbiterd.core.backend import breaker, sleeping
from arbiterd.core.backend.backend_axes import AWAKE
from arbiterd.core.backend.backend_state import (
    LADDER,
    After,
    BackendState,
    DrainCause,
    ending,
    serves,
)
from arbiterd.core.backend.failing import give_back
from arbiterd.core.backend.planning import engine_url
from arbiterd.core.facts import Facts, Step
from arbiterd.core.incidents import found
from arbiterd.core.limits import (
    BYTES_BACK_PINNED_S,
    BYTES_BACK_S,
    DISRUPTIVE_MAX,
    ESCALATE_S,
    LEAD_MAX_S,
    SEEN_BACK,
    TRIM_IGNORED_S,
)
from arbiterd.core.memory import pressure
from arbiterd.core.memory.device_state import DeviceState, Reclaim
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.victim import Option, recent, resident
from arbiterd.core.notes import About, Heard, Note, Notes, Order, Record
from arbiterd.core.records import later
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


@dataclass(frozen=True, slots=True)
class Followed:
    """A device after one tick of its reclaim; the backend that this has changed, None for none."""

    device: DeviceState
    notes: Notes = ()
    backend: BackendState | None = None


def begin(
    facts: Facts, uuid: str, state: DeviceState, option: Option, *, drain_s: float
) -> Followed:
    """Order it. ``drain_s``: how long the requests of a restarted backend may still run."""
    one, now = option.candidate, facts.seen.now
    incident = found(facts.incidents, About((EventName.PRESSURE_RISE,), gpu=uuid))
    patience = BYTES_BACK_PINNED_S if one.rung is Rung.SLEEP else BYTES_BACK_S
    reclaim = Reclaim(
        rung=one.rung,
        backend=one.backend,
        reason=one.reason,
        began=now,
        began_wall=facts.seen.wall,
        expected=one.bytes_expected,
        used=state.sampled.used.get(one.backend, 0),
        deadline=now + patience + drain_s,
        incident=incident.id if incident else "",
        model=option.model,
    )
    said, backend = _said_begin(facts, uuid, reclaim), facts.backends[one.backend]
    match one.rung:
        case Rung.TRIM:
            order = _unload(facts, uuid, reclaim)
            reclaim, step = replace(reclaim, action=order.action.id), Step(backend, (order,))
        case Rung.SLEEP:
            step = Step(sleeping.ask(facts, backend, LADDER, drain_s))
        case _:
            step = _restart(facts, reclaim, drain_s)
    ladder = state.ladder.begin(reclaim, _key(reclaim))
    if one.rung in DISRUPTIVE and not option.grows:
        over = state.sampled.used.get(one.backend, 0) - facts.placements[one.backend].cap_bytes
        ladder = ladder.ended_flat(one.backend, over)
    if one.rung in DISRUPTIVE:
        ladder = ladder.disturbed((*recent(ladder.disruptive, now), now))
    if one.rung in (Rung.RESTART, Rung.STOP):
        mine = (*recent(ladder.restarts.get(one.backend, ()), now), now)
        ladder = ladder.restarted(one.backend, mine)
    return Followed(state.having(ladder=ladder), (said, *step.notes), step.backend)


def follow(facts: Facts, uuid: str, state: DeviceState) -> Followed:
    """One tick of the reclaim in flight: has it worked, must more be done, is it over."""
    reclaim = state.ladder.reclaim
    if reclaim is None:
        return Followed(state)
    if reclaim.rung is Rung.TRIM:
        return _follow_trim(facts, uuid, state, reclaim)
    backend = facts.backends.get(reclaim.backend)
    if backend is not None and _mended(facts, state, backend):
        counted = reclaim.rung is not Rung.SLEEP  # a sleep is no failure
        history = backend.history.called_off() if counted else backend.history
        back = backend.stay().having(sleep=AWAKE, history=history)
        text = "called off: it is within its cap again"
        ended = _end(facts, uuid, state, reclaim, text, 0)
        return replace(ended, backend=facts.enter(back, Phase.READY, ""))
    if (
        backend is not None
        and backend.phase is Phase.DRAINING
        and _no_more_time(facts, uuid, state, backend.name)
    ):
        backend = backend.due(facts.seen.now)
    asleep = reclaim.rung is Rung.SLEEP and backend is not None
    moving = backend is not None and backend.phase in (Phase.DRAINING, Phase.STOPPING)
    if asleep and backend is not None and sleeping.busy(backend):
        moving = True
    if not moving:
        freed = reclaim.used - (state.sampled.used.get(reclaim.backend, 0) if asleep else 0)
        return _end(facts, uuid, state, reclaim, "done", freed)
    if facts.seen.now >= reclaim.deadline:
        late = "its bytes are not back in time"
        return replace(_end(facts, uuid, state, reclaim, late, freed_of(state)), backend=backend)
    return Followed(state, backend=backend)


def spared(facts: Facts, backend: BackendState) -> bool:
    """Whether the ladder, which comes after the backends' steps, will call its end off in this tick."""
    if facts.seen.stopping:
        return False
    return any(
        one.ladder.reclaim is not None
        and one.ladder.reclaim.backend == backend.name
        and one.ladder.reclaim.rung is not Rung.TRIM
        and _mended(facts, one, backend)
        for one in facts.devices.values()
    )


def _mended(facts: Facts, state: DeviceState, backend: BackendState) -> bool:
    """Whether its requests still end while it has given back what it held above its cap: then it is
    one of those that are never touched for a neighbour.
    """
    if not ending(backend) or backend.wish.parked:
        return False
    if backend.name not in facts.placements or backend.after not in _OURS:
        return (
            False  # a reload or an operator has it stopped meanwhile: that drain is not ours to end
        )
    fresh = state.sampled.seen_at == state.sampled.last_at  # over_since leaves out those that drain
    cap = facts.placements[backend.name].cap_bytes
    return fresh and backend.name in state.sampled.used and state.sampled.used[backend.name] <= cap


def _no_more_time(facts: Facts, uuid: str, state: DeviceState, name: str) -> bool:
    """Whether one of its cards has become too full to wait for requests: faster than was thought, or
    by others.
    """
    placement = facts.placements.get(name)
    others = {
        one: facts.devices[one]
        for one in (placement.devices if placement else ())
        if one in facts.devices
    }
    return any(_too_full(facts, one, its) for one, its in {**others, uuid: state}.items())


def _too_full(facts: Facts, uuid: str, state: DeviceState) -> bool:
    seen = facts.seen.devices[uuid]
    if not pressure.confirmed(state) or not isinstance(seen.memory, Known):
        return False
    headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
    return seen.memory.value.free_bytes < pressure.critical_free_bytes(headroom)


def hear(facts: Facts, state: DeviceState) -> tuple[DeviceState, Notes, str]:
    """The outcome of the action under way, heard once and also while blind; "" or why it was refused."""
    reclaim = state.ladder.reclaim
    outcome = facts.outcome_of(reclaim.action) if reclaim is not None else None
    if reclaim is None or outcome is None:
        return state, (), ""
    stage = "waits for its bytes" if reclaim.killed else "asked, waits for /api/ps and its bytes"
    if not outcome.ok:
        stage = outcome.detail
    heard = replace(reclaim, action="", told=facts.seen.now, stage=stage)
    refused = "" if outcome.ok else outcome.detail
    return state.having(ladder=state.ladder.goes_on(heard)), (Heard(outcome),), refused


def handed_over(reclaim: Reclaim | None) -> Reclaim | None:
    """As the next daemon finds it."""
    return reclaim and replace(reclaim, action="", stage="taken over")


def taken_over(reclaim: Reclaim | None, now: float) -> Reclaim | None:
    """Of the daemon before us: an unload that was asked for counts as heard."""
    return reclaim if reclaim is None or reclaim.told is not None else replace(reclaim, told=now)


def excused(reclaim: Reclaim | None, seconds: float) -> Reclaim | None:
    """As if so much time had not passed."""
    return reclaim and later(reclaim, seconds, "deadline", "told")


def freed_of(state: DeviceState) -> int:
    """Bytes the target gave up so far, less what is still on its way."""
    reclaim = state.ladder.reclaim
    if reclaim is None or state.sampled.seen_at <= reclaim.began:
        return 0
    return max(
        0, reclaim.used - state.sampled.used.get(reclaim.backend, 0) - state.sampled.releasing
    )


# -- trim --------------------------------------------------------------------------------------------
def _unload(facts: Facts, uuid: str, reclaim: Reclaim) -> Order:
    wanted = facts.settings.active.backends[reclaim.backend]
    action = UnloadModel(
        id=facts.action_id("unload", reclaim.backend, uuid),
        backend=reclaim.backend,
        gpu=uuid,
        reason=reclaim.reason,
        url=engine_url(facts.settings, wanted),
        model=reclaim.model,
        requests=engine_of(wanted.kind).unload_requests(wanted, reclaim.model),
    )
    return Order(action, reclaim.incident, bytes_expected=reclaim.expected)


def _follow_trim(facts: Facts, uuid: str, state: DeviceState, reclaim: Reclaim) -> Followed:
    now, freed = facts.seen.now, freed_of(state)
    state, heard, refused = hear(facts, state)
    reclaim = state.ladder.reclaim or reclaim
    over = refused or _trim_over(facts, state, reclaim, freed)
    if over:
        ended = _end(facts, uuid, state, reclaim, over, freed)
        return replace(ended, notes=(*heard, *ended.notes))
    told = reclaim.told if reclaim.told is not None else now
    if not reclaim.killed and now - told >= TRIM_IGNORED_S and not freed:
        killed = _kill_runner(facts, uuid, state, reclaim)
        return replace(killed, notes=(*heard, *killed.notes))
    return Followed(state, heard)


def _trim_over(facts: Facts, state: DeviceState, reclaim: Reclaim, freed: int) -> str:
    """How it has ended, "" while it goes on."""
    now, backend = facts.seen.now, facts.backends.get(reclaim.backend)
    if freed >= SEEN_BACK * reclaim.expected:
        return "done"
    here = backend is not None and (
        serves(backend) or (backend.run.adopted and backend.phase is Phase.STARTING)
    )
    if not here:
        return "its engine is gone"
    if now >= reclaim.deadline:
        return "its bytes are not back in time"
    guilty = any(
        pressure.is_over(state, name, placed.cap_bytes, now)
        for name, placed in facts.placements.items()
    )
    long = now - reclaim.began >= ESCALATE_S
    if guilty and pressure.confirmed(state) and long and not state.sampled.releasing:
        return "growth goes on"
    return ""


def _kill_runner(facts: Facts, uuid: str, state: DeviceState, reclaim: Reclaim) -> Followed:
    """The unload was not obeyed: end that one child (ollama #7779: a runner that is 'Stopping...' for
    ever; killing it alone clears it, Ollama loads again on demand).
    """
    now, why = facts.seen.now, ""
    runner = _runner(facts, uuid, reclaim)
    if len(recent(state.ladder.disruptive, now)) >= DISRUPTIVE_MAX:
        why = (
            f"the unload was not obeyed, and {DISRUPTIVE_MAX} interventions were made already: "
            "manual intervention required"
        )
    elif runner is None or runner.ref is None:
        why = "the unload was not obeyed and its runner cannot be told from others"
    if why or runner is None or runner.ref is None:
        return _end(facts, uuid, state, reclaim, why, freed_of(state))
    text = f"{reclaim.model} stays although it was told to unload: pid {runner.pid} is killed alone"
    id_ = facts.action_id("kill", reclaim.backend, uuid)
    action = KillProcesses(id_, reclaim.backend, uuid, text, (runner.ref,))
    order = Order(action, reclaim.incident, bytes_expected=reclaim.expected)
    said = facts.say(
        EventName.KILL,
        Severity.WARNING,
        f"{reclaim.backend}: {text}",
        reclaim.backend,
        reclaim.incident,
        action=action.id,
        gpu=uuid,
        bytes_expected=reclaim.expected,
        kind=RUNNER,
    )
    changed = replace(reclaim, action=action.id, killed=True, stage="its runner is killed")
    disturbed = (*recent(state.ladder.disruptive, now), now)
    ladder = state.ladder.goes_on(changed).disturbed(disturbed)
    return Followed(state.having(ladder=ladder), (order, said))


def _runner(facts: Facts, uuid: str, reclaim: Reclaim) -> GpuProcess | None:
    """The child that holds this model: the only one, or the one whose size fits the model alone."""
    seen = facts.seen.devices[uuid].processes
    mine = [p for p in seen.value if p.holder == reclaim.backend] if isinstance(seen, Known) else []
    if len(mine) == 1:
        return mine[0]
    models = resident(facts, reclaim.backend)
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
def _restart(facts: Facts, reclaim: Reclaim, drain_s: float) -> Step:
    """The guilty one goes, is counted as a failure of its own, and comes back after its back-off."""
    backend, now = facts.backends[reclaim.backend], facts.seen.now
    wanted = facts.settings.active.backends[reclaim.backend]
    summary = f"ended by the arbiter before the card overflowed: {reclaim.reason}"
    cause = Cause(CauseClass.OVER_CAP, "", summary)
    counted, open_ = breaker.failed(backend, cause, wanted, facts.seen)
    stop = open_ or reclaim.rung is Rung.STOP
    if stop:
        counted = counted.having(history=counted.history.waits(breaker.rest_until(now)))
    after = After.FAILED if stop else After.BACKOFF
    if drain_s <= 0:
        return give_back(facts, counted, after, summary, grace_s=0.0)
    drains = counted.leave(after, now + drain_s, DrainCause.PRESSURE)
    return Step(facts.enter(drains, Phase.DRAINING, summary))


# -- telling ------------------------------------------------------------------------------------------
def _key(reclaim: Reclaim) -> str:
    model = f":{reclaim.model}" if reclaim.model else ""
    return f"{reclaim.rung}:{reclaim.backend}{model}"


def _said_begin(facts: Facts, uuid: str, reclaim: Reclaim) -> Note:
    index = facts.seen.devices[uuid].device.index
    what = f"{reclaim.rung} of {reclaim.model or reclaim.backend}"
    return facts.say(
        EventName.RECLAIM,
        Severity.ERROR if reclaim.rung in DISRUPTIVE else Severity.WARNING,
        f"GPU {index}: {what}, {format_size(reclaim.expected)} expected: {reclaim.reason}",
        reclaim.backend,
        reclaim.incident,
        gpu=uuid,
        reason=reclaim.reason,
        bytes_expected=reclaim.expected,
        kind=reclaim.rung.value,
    )


def _end(
    facts: Facts, uuid: str, state: DeviceState, reclaim: Reclaim, outcome: str, freed: int
) -> Followed:
    took = facts.seen.now - reclaim.began
    worked = freed >= SEEN_BACK * reclaim.expected
    index = facts.seen.devices[uuid].device.index
    what = f"{reclaim.rung} of {reclaim.model or reclaim.backend}"
    said = facts.say(
        EventName.RECLAIM,
        Severity.NOTICE if worked else Severity.WARNING,
        f"GPU {index}: {what}: {outcome}, {format_size(freed)} of {format_size(reclaim.expected)} "
        f"back in {format_duration(took)}",
        reclaim.backend,
        reclaim.incident,
        gpu=uuid,
        reason=outcome,
        bytes_expected=reclaim.expected,
        bytes_freed=freed,
        took_ms=took * 1000,
        kind=reclaim.rung.value,
    )
    vain = reclaim.rung is Rung.TRIM and not worked
    failed = {f"failed {_key(reclaim)}": facts.seen.now} if vain else {}
    record = ActionRecord(
        id=facts.action_id("reclaim", reclaim.backend, uuid),
        action=f"Reclaim {reclaim.rung}",
        target=reclaim.model or reclaim.backend,
        reason=reclaim.reason,
        started_at=reclaim.began_wall,
        took_ms=took * 1000,
        bytes_expected=reclaim.expected,
        bytes_freed=freed,
        outcome=outcome,
    )
    lead = state.ladder.lead_s
    lead = pressure.lead_of(took, lead, LEAD_MAX_S) if worked else lead
    ended = state.having(ladder=state.ladder.ended(lead, failed))
    return Followed(ended, (said, Record(reclaim.incident, record)))
