"""What the doors do, as a policy: let in, away, hold, shed; failover and its way back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.limits import FAILBACK_S
from arbiterd.core.state import State
from arbiterd.core.traffic.doors import full_retry_after_s
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Admit, Traffic
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Degrade, Failover, Settings
from tests.core.world import OLLAMA, TICK_S, World, settings

MODEL = "M"


def with_failover() -> Settings:
    """vLLM's model is in Ollama, too; TensorFlow's advice is the LLMs."""
    made = settings()
    rule = Failover(MODEL, "vllm", "ollama", "qwen2.5:3b")
    advice = Degrade("tensorflow", "llm-only", ("vllm", "ollama"))
    return replace(made, failover=(rule,), degrade=(advice,))


def test_all_doors_are_up_once_the_engines_take_work() -> None:
    """And before that they shed, with a Retry-After, and nothing is told: a start is no outage."""
    world = World(settings())
    world.tick()
    assert world.door("vllm").admit is Admit.SHED
    assert 1 <= world.door("vllm").retry_after_s <= 120
    world.up()
    assert {world.door(n).admit for n in ("tensorflow", "vllm", "ollama")} == {Admit.UP}
    assert not world.told(EventName.SHED)


def test_a_dead_engine_is_shed_in_the_tick_that_sees_it() -> None:
    """And let in again in the tick in which it takes work."""
    world = World(settings()).up()
    world.die("vllm", Exit(signal=9))
    world.tick()
    assert world.door("vllm").admit in (Admit.SHED, Admit.HOLD)
    assert "vllm" in world.door("vllm").why
    assert world.told(EventName.SHED, "vllm") == 1
    world.until("vllm", Phase.READY)
    world.tick()
    assert world.door("vllm").admit is Admit.UP
    assert world.told(EventName.UNSHED, "vllm") == 1


def test_failover_is_in_force_at_once_and_fails_back_with_hysteresis() -> None:
    """A flapping engine must not flap at the clients: away for FAILBACK_S of good health."""
    world = World(with_failover()).up()
    assert world.decision is not None
    assert world.decision.gateway.failover == {("vllm", MODEL): "ollama"}
    world.die("vllm", Exit(signal=9))
    world.tick()
    assert world.told(EventName.FAILOVER, "vllm") == 1
    world.until("vllm", Phase.READY)
    world.tick()
    assert world.door("vllm").admit is Admit.AWAY
    world.tick(round(FAILBACK_S / TICK_S) + 1)
    assert world.door("vllm").admit is Admit.UP
    assert world.told(EventName.FAILBACK, "vllm") == 1


def test_nobody_stands_in_who_is_out_himself() -> None:
    """All unhealthy: every door sheds, no failover is named, one incident says so."""
    world = World(with_failover()).up()
    for name in ("tensorflow", "vllm", "ollama"):
        world.fail_starts[name] = "no"
        world.die(name, Exit(code=1))
    world.tick(60)
    assert world.decision is not None
    assert world.decision.gateway.failover == {}
    doors = world.decision.gateway.backends.values()
    assert all(one.admit is Admit.SHED and not one.accepting for one in doors)
    assert world.told(EventName.ALL_UNAVAILABLE) == 1


def test_advice_stands_beside_a_backend_without_a_substitute() -> None:
    """'Use the LLMs only' when TensorFlow is out."""
    world = World(with_failover()).up()
    assert world.door("tensorflow").advice == "llm-only: vllm, ollama"
    assert world.door("vllm").advice == ""


def test_a_short_absence_is_held_a_long_one_is_shed() -> None:
    """TensorFlow started within a second before: its clients wait rather than try again."""
    world = World(settings(), start_s=0.5).up()
    world.die("tensorflow", Exit(code=1))
    world.tick()
    admits = {world.door("tensorflow").admit}
    for _ in range(20):
        world.tick()
        admits.add(world.door("tensorflow").admit)
    assert Admit.HOLD in admits
    slow = World(settings(), start_s=30.0).up()
    slow.die("tensorflow", Exit(code=1))
    for _ in range(40):
        slow.tick()
        assert slow.door("tensorflow").admit is Admit.SHED


def test_nothing_is_held_while_no_backend_takes_work() -> None:
    """A crash of all at once: every door says 503 at once, however soon they are back."""
    world = World(settings(), start_s=0.5).up()
    for name in ("tensorflow", "vllm", "ollama"):
        world.die(name, Exit(code=1))
    for _ in range(30):
        world.tick()
        doors = [world.door(name) for name in ("tensorflow", "vllm", "ollama")]
        if not any(one.accepting for one in doors):
            assert {one.admit for one in doors} == {Admit.SHED}
    world.up()
    assert {world.door(name).admit for name in ("tensorflow", "vllm", "ollama")} == {Admit.UP}


def test_an_unknown_name_is_told_once_with_the_line_to_add() -> None:
    """Port and final dot belong to no name of the file; those already there stay in the line."""
    made = settings()
    made = replace(made, gateway=replace(made.gateway, hosts=("a.lan",)))
    world = World(made).up()
    world.unknown_hosts = frozenset({"llm.lan.:11434"})
    world.tick(3)
    assert world.told(EventName.UNKNOWN_HOST) == 1
    world.unknown_hosts |= {"b.lan"}
    decision = world.tick()
    assert world.told(EventName.UNKNOWN_HOST) == 2
    said = [e.message for e in decision.events if e.name is EventName.UNKNOWN_HOST]
    assert len(said) == 1
    assert '[gateway] hosts = ["a.lan", "b.lan"]' in said[0]


@pytest.mark.parametrize(
    ("seen", "retry"),
    [
        (None, 1),
        (Traffic(in_flight=4, queued=8, limit=4, latency_ms=0), 1),
        (Traffic(in_flight=4, queued=8, limit=4, latency_ms=2000), 5),  # 9 x 2 s / 4 slots
        (Traffic(in_flight=1, queued=31, limit=1, latency_ms=60_000), 120),
    ],
)
def test_a_full_queue_tells_when_a_place_will_be_free(seen: Traffic | None, retry: int) -> None:
    """Queue over service rate, in whole seconds from 1 to 120."""
    assert full_retry_after_s(seen, OLLAMA) == retry


def test_a_full_door_is_not_accepting_and_says_the_numbers() -> None:
    """For routers; the door itself stays up and decides for each request."""
    world = World(settings()).up()
    world.traffic["vllm"] = Traffic(in_flight=8, queued=32, limit=8)
    world.tick()
    view = world.view("vllm")
    assert not view.accepting
    assert view.reason == "full: 8 in flight, 32 queued"
    assert world.door("vllm").admit is Admit.UP


def test_requests_in_flight_without_any_progress_make_an_engine_suspect() -> None:
    """Ollama has no counters of its own: what the gateway sees is its evidence."""
    world = World(settings()).up()
    world.engines["ollama"].canary_ok = False
    world.traffic["ollama"] = Traffic(in_flight=2, limit=8, bytes_out=1000)
    world.tick(round(25 / TICK_S))
    assert world.door("ollama").admit is Admit.SHED
    assert (
        "no counter moved" in world.view("ollama").reason or "canary" in world.view("ollama").reason
    )


def test_an_engine_that_answers_is_not_suspect_however_busy() -> None:
    """Bytes go out: alive."""
    world = World(settings()).up()
    for step in range(round(60 / TICK_S)):
        world.traffic["ollama"] = Traffic(in_flight=2, limit=8, bytes_out=1000 * step)
        world.tick()
    assert world.door("ollama").admit is Admit.UP


def test_a_gateway_that_is_away_for_seconds_is_an_incident() -> None:
    """Its restart takes less and is none."""
    world = World(settings()).up()
    world.gateway_problem = "runtime.sock: Connection refused"
    world.tick(8)
    assert not world.told(EventName.GATEWAY_DOWN)
    assert not world.view("vllm").accepting
    world.tick(8)
    assert world.told(EventName.GATEWAY_DOWN) == 1
    world.gateway_problem = ""
    world.tick(2)
    assert world.view("vllm").accepting
    assert world.told(EventName.RECOVERED) == 1


def test_a_short_absence_is_a_line_and_no_incident() -> None:
    """HAProxy was killed and is back: the journal tells it, with the seconds."""
    world = World(settings()).up()
    world.gateway_problem = "runtime.sock: Connection refused"
    world.tick(4)
    world.gateway_problem = ""
    world.tick(2)
    assert world.told(EventName.GATEWAY_DOWN) == 1
    assert not world.state.incidents
    world.tick(8)
    assert world.told(EventName.GATEWAY_DOWN) == 1


def test_a_gateway_that_is_slow_at_its_first_start_is_no_incident() -> None:
    """A host that boots is busy. One that does not come at all is told a little later."""
    world = World(settings())
    world.gateway_problem = "runtime.sock: No such file or directory; being started"
    world.tick(round(10 / TICK_S))
    assert not world.told(EventName.GATEWAY_DOWN)
    world.tick(round(6 / TICK_S))
    assert world.told(EventName.GATEWAY_DOWN) == 1


def test_doors_stay_open_while_an_adopted_engine_has_not_been_heard_from() -> None:
    """A restart of the daemon is no reason to refuse anybody; an engine that stays silent is."""
    world = World(settings()).up()
    for engine in world.engines.values():
        engine.ready_after = world.now + 3600
    world.state = State(run="next")
    world.tick()
    assert {world.door(n).admit for n in ("tensorflow", "vllm", "ollama")} == {Admit.UP}
    world.tick(round(11 / TICK_S))
    assert world.door("vllm").admit is Admit.SHED
