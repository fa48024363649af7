"""A card that was lost and is back, and the engines that were ready on it."""

from __future__ import annotations

import pytest

from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from tests.core.world import World, only


def lost_and_back(name: str, *, wiped: bool, loaded: bool = True) -> World:
    """The engine is ready, its card goes and comes, with its bytes or without them."""
    world = World(only(name)).up()
    world.lost.add(0)
    world.tick(40)
    if wiped:
        world.engines[name].held = 0
    if not loaded:
        world.engines[name].loaded = ()
    world.lost.discard(0)
    return world


@pytest.mark.parametrize("name", ["vllm", "tensorflow", "ollama"])
def test_an_engine_that_holds_nothing_any_more_is_started_anew(name: str) -> None:
    """Its health URL says 200 all the while; the reason has the number."""
    world = lost_and_back(name, wiped=True)
    world.until(name, Phase.STOPPING, Phase.BACKOFF, ticks=12)
    said = [i.summary for i in world.decision.incidents if i.backend == name]  # type: ignore[union-attr]
    assert any("its CUDA context is gone" in text for text in said), said
    world.until(name, Phase.READY)
    world.tick(40)
    assert world.told(EventName.EXIT, name) == 1


@pytest.mark.parametrize("name", ["vllm", "tensorflow", "ollama"])
def test_one_that_holds_what_it_held_is_left_alone(name: str) -> None:
    """A driver that did not answer for it, a card that was unlisted for a moment."""
    world = lost_and_back(name, wiped=False)
    world.tick(60)
    assert world.told(EventName.EXIT, name) == 0
    assert world.view(name).accepting


def test_an_ollama_without_a_resident_model_needs_no_context() -> None:
    """Its model has left meanwhile: the next request loads it."""
    world = lost_and_back("ollama", wiped=True, loaded=False)
    world.tick(60)
    assert world.told(EventName.EXIT, "ollama") == 0
