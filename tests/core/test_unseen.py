"""Time that the daemon did not see (SIGSTOP, starvation, suspend) is held against nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from arbiterd.core.state import Lease, State, Switch
from arbiterd.core.unseen import excused
from arbiterd.model.actions import StopBackend, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Traffic
from tests.core.world import World, only

GAP_S = 3600.0
SICK = (EventName.UNHEALTHY, EventName.STUCK, EventName.EXIT)


def _pause(world: World, *, seen: bool = False) -> None:
    """The daemon stood still for an hour; ``seen``: it was told nothing of that."""
    world.now += GAP_S
    world.unseen_s = 0.0 if seen else GAP_S
    world.tick()
    world.unseen_s = 0.0


def _starting() -> World:
    world = World(only("vllm"), start_s=1e9)
    world.until("vllm", Phase.STARTING)
    return world


def _draining() -> World:
    world = World(only("vllm")).up()
    world.traffic["vllm"] = Traffic(in_flight=1, limit=8, engine_up=True)
    world.ask(Verb.RESTART, "vllm")
    world.tick(2)
    return world


def _sick() -> World:
    world = World(only("vllm")).up()
    world.engines["vllm"].ok = False
    world.tick(4)
    return world


def _stuck() -> World:
    world = World(only("vllm")).up()
    world.engines["vllm"].running = 4
    world.tick(8)
    return world


@pytest.mark.parametrize(
    ("made", "least_s"), [(_starting, 50.0), (_draining, 25.0), (_sick, 25.0), (_stuck, 1.0)]
)
def test_no_deadline_passes_while_the_daemon_stands_still(
    made: Callable[[], World], least_s: float
) -> None:
    """A start, a drain, an engine that is sick and counters that stand still have their whole time in
    ticks; the same hour in the daemon's sight ends each of them at once.
    """
    world = made()
    phase, told = world.phase("vllm"), [world.told(one) for one in SICK]
    _pause(world)
    assert world.phase("vllm") is phase
    assert [world.told(one) for one in SICK] == told
    assert not [one for one in world.ordered if isinstance(one, StopBackend)]
    began = world.now
    for _ in range(2000):
        world.tick()
        if [one for one in world.ordered if isinstance(one, StopBackend)]:
            break
    assert least_s <= world.now - began <= 90.0, "it is ended in the end"
    other = made()
    _pause(other, seen=True)
    other.tick()
    ends = [one for one in other.ordered if isinstance(one, StopBackend)]
    assert ends or other.told(EventName.STUCK), "the daemon that was there ends it"


def test_an_hour_of_standing_still_tells_nothing_of_healthy_engines() -> None:
    """No event, no action: neither of engines nor of devices."""
    world = World(only("vllm", "tensorflow")).up()
    events, ordered = len(world.events), len(world.ordered)
    _pause(world)
    world.tick(40)
    assert world.events[events:] == []
    assert world.ordered[ordered:] == []


def test_leases_switches_and_the_gateways_absence_move_on_as_well() -> None:
    """Everything that would be held against somebody; nothing where no time was lost."""
    world = World(only("vllm")).up()
    state = replace(
        world.state,
        leases={"a": Lease("a", "ollama", "m", 1, 5.0, 9.0)},
        switch=Switch("A", "B", 1.0, 1.0, 7.0, {}, {}),
        gateway_bad_since=3.0,
        orphans={(7, 7): 2.0},
    )
    later: State = excused(state, 100.0)
    assert later.leases["a"].expires == 109.0
    assert later.switch is not None
    assert (later.switch.deadline, later.gateway_bad_since) == (107.0, 103.0)
    assert later.orphans == {(7, 7): 102.0}
    assert excused(state, 0.0) is state
    assert later.backends["vllm"].deadline == state.backends["vllm"].deadline
