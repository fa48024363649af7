"""The policy, in one function: a whole snapshot in, a whole decision out.

Read from top to bottom: requests are noted, the world is adopted once, devices are judged, every
backend takes one step of its life, leftovers are found, the ladder is climbed where a device is under
pressure, a switch is followed, loads are answered, the doors are set, and what came of it is published.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core import gpus, learn, ledger, progress, switch
from arbiterd.core.adopt import adopt, meet
from arbiterd.core.carry import devices_of
from arbiterd.core.desk import Desk
from arbiterd.core.doors import judge_gateway, wish
from arbiterd.core.evidence import refusals
from arbiterd.core.faults import judge_xids
from arbiterd.core.files import judge_files
from arbiterd.core.gate import loading
from arbiterd.core.grants import grant
from arbiterd.core.ladder import climb
from arbiterd.core.lifecycle import step
from arbiterd.core.limits import BLOCKED_AFTER_S
from arbiterd.core.loads import answer_loads, settle_loads
from arbiterd.core.orphans import find_orphans
from arbiterd.core.placement import place
from arbiterd.core.planning import engine_url
from arbiterd.core.pressure import lists_soon
from arbiterd.core.requests import take_requests
from arbiterd.core.runners import tell_deaths
from arbiterd.core.state import Carry, Placed, State
from arbiterd.core.unseen import excused
from arbiterd.core.views import backend_view, device_view, used_by_holder
from arbiterd.core.warm import note_loads
from arbiterd.engines import engine_of
from arbiterd.model.backend import LedgerRow, Phase
from arbiterd.model.decision import Decision
from arbiterd.model.devices import GpuState
from arbiterd.model.events import EventName, Severity
from arbiterd.model.health import ProbeOrder
from arbiterd.model.launch import UnitState
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings

_PROBED = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


def decide(observation: Observation, state: State, settings: Settings) -> tuple[Decision, State]:
    """Decide one tick. Pure: same input, same output."""
    state = excused(state, observation.unseen_s)
    placed = _placed(observation, state, settings)
    configured = dict(placed.placements)
    placements = learn.apply(configured, observation, state, settings)
    desk = Desk(observation, state, settings, placements, configured)

    if state.settings is not settings:
        switch.begin(desk, state.settings)
    meet(desk)
    take_requests(desk)
    carried = state.carried if state.first_tick else None
    if state.first_tick:
        adopt(desk, carried or Carry())
        switch.resume(desk, carried.switch if carried else None)
    ledgers = desk.ledgers = _ledgers(desk)
    if carried is not None:
        desk.devices = devices_of(carried, observation.now)
    desk.devices = gpus.judge(desk, ledgers)
    judge_xids(desk)
    tell_deaths(desk)
    settle_loads(desk)
    note_loads(desk)
    progress.note(desk)
    before = dict(desk.backends)
    grant(desk, {name: step(desk, before[name]) for name in _order(desk)}, before)
    orphans, orphan_pending = find_orphans(desk)
    climb(desk)
    back_to = switch.follow(desk)
    judge_gateway(desk)
    judge_files(desk)
    loads, held = answer_loads(desk)
    doors = wish(desk)
    _availability(desk)

    decision = replace(_decision(desk, ledgers), gateway=doors, loads=loads, back_to=back_to)
    new = replace(
        desk.state,
        tick=state.tick + 1,
        mode=settings.mode,
        settings=settings,
        good=desk.state.good or settings,
        first_tick=False,
        carried=None,
        backends=desk.backends,
        devices=desk.devices,
        learned=desk.learned,
        refusals=refusals(desk),
        doors=desk.doors,
        leases=desk.leases,
        held=held,
        loads_at=desk.seen.now,
        incidents=tuple(desk.incidents),
        orphans=orphans,
        orphan_pending=orphan_pending,
        placed=placed,
    )
    return decision, new


def _placed(seen: Observation, state: State, settings: Settings) -> Placed:
    """The placements of this tick: those of the last one while nothing they are made of has changed."""
    devices = tuple(one.device for one in seen.devices.values())
    old = state.placed
    if old is not None and old.settings is settings and old.devices == devices:
        return old
    made = place(settings.active, devices, settings.arbiter.headroom_bytes)
    return Placed(settings, devices, made)


def _order(desk: Desk) -> list[str]:
    """Start order: rank, then name; what the mode does not name comes first (it frees memory)."""

    def key(name: str) -> tuple[int, str]:
        wanted = desk.wanted(name)
        return (engine_of(wanted.kind).start_rank if wanted else -1, name)

    return sorted(desk.backends, key=key)


def _ledgers(desk: Desk) -> dict[str, tuple[LedgerRow, ...]]:
    headroom = desk.settings.arbiter.headroom_bytes
    return {
        uuid: ledger.rows(seen, desk.placements, desk.backends, headroom)
        for uuid, seen in desk.seen.devices.items()
    }


def _availability(desk: Desk) -> None:
    """One incident while no backend takes work although some should."""
    expected = [b for b in desk.backends.values() if desk.wanted(b.name) and not b.parked]
    up = [
        b
        for b in expected
        if (b.phase is Phase.READY and b.vitals.sick_since is None)
        or (b.adopted and b.phase is Phase.STARTING)  # it ran before we came
    ]
    open_ = desk.open_incident("", "", EventName.ALL_UNAVAILABLE)
    now = desk.seen.now  # a first start is no outage
    settled = all(b.start_took_s or b.attempt or now - b.since >= BLOCKED_AFTER_S for b in expected)
    if up and open_:
        desk.close_incident(open_.id, EventName.RECOVERED, f"{up[0].name} takes work again")
    elif desk.state.switch is not None and not desk.state.switch.rolling_back:
        return  # every engine may move at once in a switch: that was asked for, and is followed itself
    elif expected and not up and not open_ and settled and not desk.seen.stopping:
        names = ", ".join(f"{b.name} ({b.phase.value})" for b in expected)
        text = f"no backend takes work: {names}"
        desk.raise_incident(EventName.ALL_UNAVAILABLE, Severity.CRITICAL, text)


def _probes(desk: Desk) -> tuple[ProbeOrder, ...]:
    orders = []
    for backend in desk.backends.values():
        wanted, unit = desk.wanted(backend.name), desk.unit(backend.name)
        if wanted is None or backend.phase not in _PROBED or unit.state is not UnitState.RUNNING:
            continue
        vitals = backend.vitals
        # What is resident changes under a load: a canary then could be one itself.
        quiet = not loading(desk, backend.name) and not backend.warm_pending
        suspect = bool(vitals.bad or vitals.canary_bad or vitals.stuck or vitals.canary_due)
        ending = backend.phase is Phase.DRAINING and backend.deadline is not None
        orders.append(
            ProbeOrder(
                backend=backend.name,
                url=engine_url(desk.settings, wanted),
                fence=unit.invocation,
                fast=backend.phase is Phase.STARTING or ending or suspect,
                canary_due=vitals.canary_due and quiet,
                trial=backend.canaries.asked,
                canaries=backend.canaries.kept,
            )
        )
    return tuple(orders)


def _decision(desk: Desk, ledgers: dict[str, tuple[LedgerRow, ...]]) -> Decision:
    listed = [*desk.settings.active.backends]
    listed += [name for name in desk.backends if name not in listed]
    used = used_by_holder(ledgers)
    views = {
        name: backend_view(desk, desk.backends[name], used.get(name, 0))
        for name in listed
        if name in desk.backends
    }
    devices = {uuid: device_view(desk, uuid, ledgers[uuid]) for uuid in desk.seen.devices}
    quiet = all(b.phase is Phase.STOPPED and not b.pending for b in desk.backends.values())
    blind = bool(desk.seen.nvml) or any(
        seen.state is not GpuState.OK for seen in desk.seen.devices.values()
    )
    return Decision(
        actions=tuple(desk.actions),
        events=tuple(desk.events),
        probes=_probes(desk),
        backends=views,
        devices=devices,
        incidents=tuple(desk.incidents),
        blind=blind,
        learned=desk.learned,
        switch=switch.view(desk),
        last_switch=desk.state.last,
        times=switch.known_times(desk),
        lists_soon=any(lists_soon(state, desk.seen.now) for state in desk.devices.values()),
        settled=quiet and not desk.actions,
    )
