"""The second probe: a client's way to an engine. It decides what routers are told, never a restart."""

from __future__ import annotations

import pytest

from arbiterd.core.limits import GATEWAY_DOWN_S
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Admit, Traffic
from arbiterd.model.launch import Exit
from tests.core.test_doors import with_failover
from tests.core.world import TICK_S, World, settings

LONG = round(120 / TICK_S)


def up() -> World:
    """All ready, every way open."""
    world = World(settings(), ways=dict.fromkeys(("tensorflow", "vllm", "ollama"), ""))
    return world.up()


def test_a_broken_way_is_told_to_routers_and_restarts_nothing() -> None:
    """Not accepting, an incident of its own, requests still let in, the engine untouched for minutes."""
    world = up()
    world.ways["ollama"] = "no answer within 2 s"
    world.tick(LONG)
    view = world.view("ollama")
    assert (view.phase, view.accepting, view.restarts) == (Phase.READY, False, 0)
    assert view.reason == "it answers, but not through its door: no answer within 2 s"
    assert not world.door("ollama").accepting
    assert world.door("ollama").admit is Admit.UP
    assert world.told(EventName.DOOR_BROKEN, "ollama") == 1
    assert world.stopped == []
    assert not world.told(EventName.UNHEALTHY)
    assert world.view("vllm").accepting


def test_it_is_over_with_the_first_good_answer() -> None:
    """And the incident is closed."""
    world = up()
    world.ways["vllm"] = "HTTP 502"
    world.tick(round(GATEWAY_DOWN_S / TICK_S) + 8)
    assert world.told(EventName.DOOR_BROKEN, "vllm") == 1
    world.ways["vllm"] = ""
    world.tick()
    assert world.view("vllm").accepting
    assert world.told(EventName.RECOVERED, "vllm") == 1


def test_one_miss_and_a_restart_of_haproxy_are_none() -> None:
    """Three in a row count, an incident needs GATEWAY_DOWN_S."""
    world = up()
    world.ways["vllm"] = "connection refused"
    world.tick(2)
    assert world.view("vllm").accepting
    world.tick(2)
    assert not world.view("vllm").accepting
    world.ways["vllm"] = ""
    world.tick(4)
    assert world.view("vllm").accepting
    assert not world.told(EventName.DOOR_BROKEN)


def test_a_door_that_was_never_open_is_not_believed() -> None:
    """Ready, but nothing came through yet: no router is sent there; the first failure is enough."""
    world = World(settings(), ways={"vllm": "?"})
    world.until("vllm", Phase.READY)
    world.tick(4)
    assert world.view("vllm").reason == "its door has not answered yet"
    world.ways["vllm"] = "HTTP 403"
    world.tick()
    assert "HTTP 403" in world.view("vllm").reason


def test_a_dead_engine_is_not_its_doors_fault() -> None:
    """While the engine is silent its way has nothing to say."""
    world = up()
    world.engines["vllm"].ok = False
    world.ways["vllm"] = "HTTP 503"
    world.tick(round(20 / TICK_S))
    assert not world.told(EventName.DOOR_BROKEN)
    assert world.told(EventName.UNHEALTHY, "vllm") == 1
    world.die("ollama", Exit(signal=9))
    world.ways["ollama"] = "HTTP 503"
    world.tick(4)
    assert not world.told(EventName.DOOR_BROKEN)


def test_nobody_is_sent_by_failover_where_no_way_leads() -> None:
    """A substitute that cannot be reached is none."""
    world = World(with_failover(), ways=dict.fromkeys(("vllm", "ollama"), "")).up()
    assert world.decision is not None
    assert world.decision.gateway.failover
    world.ways["ollama"] = "no answer within 2 s"
    assert not world.tick(8).gateway.failover


@pytest.mark.parametrize("gone", ["stop", "die"])
def test_its_incident_ends_with_the_engine(gone: str) -> None:
    """What no longer runs has no door to be broken."""
    world = up()
    world.ways["vllm"] = "HTTP 502"
    world.tick(round(GATEWAY_DOWN_S / TICK_S) + 8)
    assert world.told(EventName.DOOR_BROKEN, "vllm") == 1
    if gone == "die":
        world.die("vllm", Exit(signal=9))
    else:
        world.stopping = True
    world.tick(2)
    assert all(
        i.closed_at is not None for i in world.state.incidents if i.event is EventName.DOOR_BROKEN
    )


@pytest.mark.parametrize("name", ["tensorflow", "vllm", "ollama"])
def test_what_haproxys_checks_do_not_reach_is_told_to_routers(name: str) -> None:
    """Its door is 503 then, whatever our own probes say; open again it is back, and nothing was restarted."""
    world = World(with_failover(), ways=dict.fromkeys(("tensorflow", "vllm", "ollama"), "")).up()
    world.traffic[name] = Traffic(engine_down=True)
    world.tick()
    view = world.view(name)
    assert (view.phase, view.accepting, view.restarts) == (Phase.READY, False, 0)
    assert view.reason == "its port takes no connections"
    assert not world.door(name).accepting
    assert world.decision is not None
    assert name not in world.decision.gateway.failover.values(), "nobody is sent there instead"
    world.traffic[name] = Traffic(engine_up=True)
    world.tick(2)
    assert world.view(name).accepting
    assert world.stopped == []


def test_without_the_load_gate_only_ollama_is_out() -> None:
    """Its bodies pass there; the others are served by HAProxy alone."""
    world = up()
    world.gate_problem = "gate.sock: timed out; the load gate does not answer"
    world.tick()
    assert world.view("ollama").reason.startswith("the load gate does not serve: gate.sock")
    assert not world.view("ollama").accepting
    assert world.view("vllm").accepting
    assert world.view("tensorflow").accepting
    world.gate_problem = ""
    world.tick()
    assert world.view("ollama").accepting
