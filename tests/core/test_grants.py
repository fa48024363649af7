"""At most one memory event per device begins in a tick, and none beside one that goes on."""

from __future__ import annotations

from arbiterd.model.backend import Phase
from arbiterd.model.launch import Exit
from tests.core.world import World, only


def waiting() -> World:
    """TensorFlow's turn has come; vLLM, which is stepped after it, runs on the same device."""
    world = World(only("tensorflow", "vllm")).up()
    world.die("tensorflow", Exit(code=1), "Traceback")
    world.until("tensorflow", Phase.WAITING)
    return world


def test_it_starts_where_nothing_moves() -> None:
    """In the tick after its turn has come."""
    world = waiting()
    world.tick()
    assert world.phase("tensorflow") is Phase.STARTING


def test_nothing_starts_in_the_tick_in_which_another_engine_dies() -> None:
    """Also where the dead one is stepped later: its bytes are not back."""
    world = waiting()
    world.die("vllm", Exit(code=1), "Traceback")
    world.tick()
    assert world.phase("vllm") is Phase.STOPPING
    assert world.phase("tensorflow") is Phase.WAITING
    assert world.view("tensorflow").reason == "vllm is giving its memory back on GPU 0"


def test_two_that_wait_start_one_after_the_other() -> None:
    """Each grant is seen by the next; the second starts once the first is ready."""
    world = World(only("tensorflow", "vllm"))
    world.until("tensorflow", Phase.STARTING)
    assert world.phase("vllm") is Phase.WAITING
    world.until("vllm", Phase.STARTING)
    assert world.phase("tensorflow") is Phase.READY
