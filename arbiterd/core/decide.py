"""The policy, in one function: a whole snapshot in, a whole decision out.

Read ``decide`` from top to bottom: each stage goes by what earlier stages have returned, and returns what
it changes, what it says and what it orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from arbiterd.core import conditions
from arbiterd.core.backend import progress
from arbiterd.core.backend.adopt import adopt, meet
from arbiterd.core.backend.carry import devices_of
from arbiterd.core.backend.lifecycle import step
from arbiterd.core.backend.orphans import find_orphans
from arbiterd.core.backend.requests import take_requests
from arbiterd.core.backend.runners import deaths
from arbiterd.core.backend.warm import note_loads
from arbiterd.core.facts import Facts, Step
from arbiterd.core.incidents import reconcile
from arbiterd.core.memory import gpus, learn, ledger
from arbiterd.core.memory.faults import judge_xids
from arbiterd.core.memory.grants import grant
from arbiterd.core.memory.ladder import climb
from arbiterd.core.memory.placement import place
from arbiterd.core.mode import switch
from arbiterd.core.notes import Notes
from arbiterd.core.published import decision
from arbiterd.core.state import NOTHING, Placed, State
from arbiterd.core.traffic.doors import gateway, wish
from arbiterd.core.traffic.evidence import refusals
from arbiterd.core.traffic.loads import answer_loads, settle_loads
from arbiterd.core.unseen import excused
from arbiterd.engines import engine_of
from arbiterd.model.actions import Action
from arbiterd.model.decision import Decision
from arbiterd.model.events import Event
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings

T = TypeVar("T")


def decide(observation: Observation, state: State, settings: Settings) -> tuple[Decision, State]:
    """Decide one tick. Pure: same input, same output."""
    facts = _facts(observation, excused(state, observation.unseen_s), settings)
    tick = _Tick()

    # asked
    facts = tick.take(*switch.begin(facts))
    facts = tick.take(meet(facts))
    facts = tick.take(*take_requests(facts))
    if facts.before.first_tick:
        facts = tick.take(*_first(facts))
    # seen
    facts = tick.take(_observed(facts))
    facts = tick.take(facts, conditions.of_nvml(facts))
    facts = tick.take(*judge_xids(facts))
    facts = tick.take(facts, deaths(facts))
    facts = tick.take(*settle_loads(facts))
    facts = tick.take(*note_loads(facts))
    facts = tick.take(*progress.note(facts))
    # steps and grants
    before = facts.backends
    steps = {name: step(facts, before[name]) for name in _order(facts)}
    facts = tick.take(*_stepped(facts, steps))
    facts = tick.take(*grant(facts, steps, before))
    facts = tick.take(*find_orphans(facts))
    facts = tick.take(facts, conditions.of_backends(facts))
    # orders
    facts = tick.take(facts, conditions.of_devices(facts))
    facts = tick.take(*climb(facts))
    facts, back_to = tick.keep(*switch.follow(facts))
    # clients
    facts = tick.take(*gateway(facts))
    facts, loads = tick.keep(*answer_loads(facts))
    facts, doors = tick.keep(*wish(facts))
    facts = tick.take(facts, conditions.of_host(facts))
    # views
    actions, events = tuple(tick.actions), tuple(tick.events)
    return decision(facts, actions, events, doors, loads, back_to), _after(facts)


class _Tick:
    """What the stages have ordered and said; nothing else in core changes while a tick is decided."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.events: list[Event] = []

    def take(self, facts: Facts, notes: Notes = ()) -> Facts:
        """What a stage has returned, its notes written into the incidents."""
        if not notes:
            return facts
        state = facts.state
        prefix = f"inc-{state.run}-{state.tick}-"
        incidents, actions, events = reconcile(notes, facts.incidents, prefix, facts.seen.wall)
        self.actions += actions
        self.events += events
        return facts if incidents == facts.incidents else replace(facts, incidents=incidents)

    def keep(self, facts: Facts, notes: Notes, result: T) -> tuple[Facts, T]:
        """The same of a stage with a result of its own."""
        return self.take(facts, notes), result


def _facts(seen: Observation, state: State, settings: Settings) -> Facts:
    placed = _placed(seen, state, settings)
    if placed is not state.placed:
        state = state.having(placed=placed)
    configured = placed.placements
    placements = learn.apply(configured, seen, state, settings)
    return Facts(
        seen=seen,
        settings=settings,
        before=state,
        state=state,
        placements=placements,
        configured=configured,
        backends=state.backends,
        devices=state.devices,
        doors=state.doors,
        leases=state.leases,
        learned=state.learned,
        incidents=state.incidents,
    )


def _first(facts: Facts) -> tuple[Facts, Notes]:
    """The first tick: what runs is taken over, what the daemon before us had begun goes on."""
    carried = facts.before.carried
    facts, notes = adopt(facts, carried or NOTHING)
    facts, said = switch.resume(facts, carried.switch if carried else None)
    if carried is not None:
        facts = replace(facts, devices=devices_of(carried, facts.seen.now))
    return facts, (*notes, *said)


def _observed(facts: Facts) -> Facts:
    """With the ledgers of this tick, and the devices as they are judged by them."""
    headroom = facts.settings.arbiter.headroom_bytes
    ledgers = {
        uuid: ledger.rows(seen, facts.placements, facts.backends, headroom)
        for uuid, seen in facts.seen.devices.items()
    }
    return replace(facts, ledgers=ledgers, devices=gpus.judge(facts, ledgers))


def _stepped(facts: Facts, steps: Mapping[str, Step]) -> tuple[Facts, Notes]:
    notes = tuple(note for one in steps.values() for note in one.notes)
    learned = {key: cap for one in steps.values() for key, cap in one.learned.items()}
    if learned:
        facts = replace(facts, learned={**facts.learned, **learned})
    return replace(facts, backends={name: steps[name].backend for name in facts.backends}), notes


def _after(facts: Facts) -> State:
    """The state that the next tick finds."""
    return facts.state.having(
        tick=facts.state.tick + 1,
        mode=facts.settings.mode,
        settings=facts.settings,
        good=facts.state.good or facts.settings,
        first_tick=False,
        carried=None,
        backends=facts.backends,
        devices=facts.devices,
        doors=facts.doors,
        leases=facts.leases,
        learned=facts.learned,
        incidents=facts.incidents,
        refusals=refusals(facts),
        loads_at=facts.seen.now,
    )


def _placed(seen: Observation, state: State, settings: Settings) -> Placed:
    """The placements of this tick: those of the last one while nothing they are made of has changed."""
    devices = tuple(one.device for one in seen.devices.values())
    old = state.placed
    if old is not None and old.settings is settings and old.devices == devices:
        return old
    made = place(settings.active, devices, settings.arbiter.headroom_bytes)
    return Placed(settings, devices, made)


def _order(facts: Facts) -> list[str]:
    """Start order: rank, then name; what the mode does not name comes first (it frees memory)."""

    def key(name: str) -> tuple[int, str]:
        wanted = facts.wanted(name)
        return (engine_of(wanted.kind).start_rank if wanted else -1, name)

    return sorted(facts.backends, key=key)
