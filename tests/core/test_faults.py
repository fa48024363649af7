"""XIDs and what a restart of the daemon must carry on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from pydantic import TypeAdapter

from arbiterd.core.backend.carry import pack
from arbiterd.core.state import Carry, State
from arbiterd.model.actions import UnloadModel, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.devices import XidEvent
from arbiterd.model.events import EventName
from arbiterd.model.gateway import LoadUndone
from arbiterd.model.launch import Exit
from arbiterd.quantities import GIB, MIB
from tests.core.test_ladder import GPU, _sleeper, grow_until_critical
from tests.core.world import World, settings


def _restart(world: World) -> None:
    """A new daemon: through JSON, as the store keeps it; outcomes on their way are lost."""
    carry = json.loads(json.dumps(asdict(pack(world.state))))
    carried = TypeAdapter(Carry).validate_python(carry)
    world.outcomes = []
    world.state = State(
        run="u", incidents=world.state.incidents, carried=carried, learned=world.state.learned
    )


# -- XIDs ----------------------------------------------------------------------------------------------
def test_an_applications_xid_restarts_the_backend_it_names() -> None:
    """31, a bad address of vLLM's process: a fresh process for it, nothing for the others."""
    world = World(settings()).up()
    pid = world.engines["vllm"].pid
    world.xids = [XidEvent(GPU, 31, world.now, pid)]
    world.tick(4)
    assert world.stopped == ["vllm"]
    world.until("vllm", Phase.READY)
    assert world.told(EventName.GPU_FAULT) == 0


def test_a_strangers_xid_is_noted_only() -> None:
    """Its pid is none of ours."""
    world = World(settings()).up()
    world.xids = [XidEvent(GPU, 31, world.now, 4711)]
    world.tick(4)
    assert world.stopped == []
    assert world.told(EventName.XID) == 1


def test_an_xid_that_needs_a_reset_stops_restarts_under_one_incident() -> None:
    """95: what runs is left to run; what dies is not started again; one incident, however many XIDs."""
    world = World(settings()).up()
    world.xids = [XidEvent(GPU, 95, world.now), XidEvent(GPU, 95, world.now)]
    world.tick(2)
    assert world.told(EventName.GPU_FAULT) == 1
    assert world.stopped == []
    world.die("vllm", Exit(code=1), "boom")
    world.engines["vllm"].held = 0
    world.until("vllm", Phase.WAITING, ticks=100)
    starts = world.told(EventName.RESTART, "vllm")
    world.tick(2000)
    assert world.phase("vllm") is Phase.WAITING
    assert "needs a reset" in world.view("vllm").reason
    assert world.told(EventName.RESTART, "vllm") == starts
    world.xids = [XidEvent(GPU, 95, world.now)]
    world.tick(2)
    assert world.told(EventName.GPU_FAULT) == 1


def open_events(world: World) -> list[EventName]:
    """Of the incidents that are open."""
    return [one.event for one in world.state.incidents if one.closed_at is None]


def test_a_card_that_wants_no_reset_any_more_is_used_again() -> None:
    """By the driver's own field, once it has confirmed the fault; or by an operator's resume."""
    world = World(settings()).up()
    world.recovery = 1
    world.xids = [XidEvent(GPU, 119, world.now)]
    world.tick(4)
    assert world.state.devices[GPU].fault.text
    assert open_events(world) == [EventName.GPU_FAULT]
    world.recovery = 0
    world.tick(2)
    assert not world.state.devices[GPU].fault.text
    assert open_events(world) == []
    world.xids = [XidEvent(GPU, 95, world.now)]
    world.tick(40)
    assert world.state.devices[GPU].fault.text
    world.ask(Verb.RESUME, "vllm")
    world.tick(2)
    assert not world.state.devices[GPU].fault.text


def test_an_informational_xid_does_nothing() -> None:
    """45 follows our own kills; 63 is a remapped row."""
    world = World(settings()).up()
    world.xids = [XidEvent(GPU, 45, world.now, world.engines["vllm"].pid), XidEvent(GPU, 63, 0.0)]
    world.tick(4)
    assert world.stopped == []
    assert world.told(EventName.XID) == 2


# -- carried over a restart ----------------------------------------------------------------------------
def test_a_restart_for_pressure_goes_on_under_the_next_daemon() -> None:
    """Its StopBackend was on its way: it is told again, and comes back after its back-off."""
    world = World(settings(), lag_s=3.0).up()
    grow_until_critical(world, "tensorflow", 300)
    while world.phase("tensorflow") is not Phase.STOPPING:
        world.tick()
    restarts = world.state.devices[GPU].ladder.restarts
    _restart(world)
    world.tick(2)
    assert world.state.devices[GPU].ladder.restarts == restarts
    world.until("tensorflow", Phase.READY)
    assert world.told(EventName.STOPPED_BY_OPERATOR) == 0


def test_a_trim_goes_on_under_the_next_daemon() -> None:
    """The unload was heard by Ollama; its bytes are awaited, nothing is asked twice at once."""
    world = World(settings(), unload_ignored=True).up()
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 100 * MIB)
    world.tick(4)
    asked = sum(1 for one in world.ordered if isinstance(one, UnloadModel))
    assert asked == 1
    _restart(world)
    world.tick(40)
    assert world.engines["ollama"].held == 0  # the runner was killed alone in the end
    assert sum(1 for one in world.ordered if isinstance(one, UnloadModel)) == 1


def test_a_sleeper_is_not_taken_for_a_ready_engine() -> None:
    """/health says 200 while it sleeps; requests to it would hang."""
    world = _sleeper()
    world.ask(Verb.SLEEP, "vllm")
    world.until("vllm", Phase.SLEEPING)
    world.tick(8)
    _restart(world)
    world.tick(40)
    assert world.phase("vllm") is Phase.SLEEPING
    assert not world.view("vllm").accepting
    world.ask(Verb.WAKE, "vllm")
    world.until("vllm", Phase.READY)


def test_back_off_breaker_drain_and_the_bound_survive() -> None:
    """A restart of the daemon is no way round them."""
    world = World(settings()).up()
    world.ask(Verb.DRAIN, "ollama")
    world.crash_on_start["vllm"] = (Exit(code=2), "vllm: error: unrecognized arguments: --x")
    world.die("vllm", Exit(code=1), "boom")
    world.engines["vllm"].held = 0
    world.until("vllm", Phase.FAILED)
    times = (world.now,) * 3
    state = world.state.devices[GPU]
    state = state.having(ladder=state.ladder.disturbed(times))
    world.state = replace(world.state, devices={GPU: state})
    _restart(world)
    world.tick(40)
    assert world.phase("vllm") is Phase.FAILED
    assert world.phase("ollama") is Phase.DRAINING
    assert world.state.devices[GPU].ladder.disruptive == times


def test_a_warm_model_that_a_client_has_unloaded_stays_out_over_a_restart() -> None:
    """Its 5 minutes go on, and so do the 30 s after a client's load."""
    world = World(settings()).up()
    world.undones.append(LoadUndone("ollama", "qwen2.5:3b"))
    world.engines["ollama"].loaded = ()
    world.tick(round(60 / 0.25))
    before = len(world.loads)
    _restart(world)
    world.tick(round(230 / 0.25))
    assert world.phase("ollama") is Phase.READY
    assert len(world.loads) == before
    world.tick(round(15 / 0.25))
    assert len(world.loads) == before + 1
