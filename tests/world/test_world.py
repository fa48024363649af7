"""The closed-loop world itself: exact bytes, engines that behave, rivals, and its speed."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arbiterd.model.devices import GpuState
from arbiterd.model.reading import Known
from arbiterd.quantities import GIB, MIB
from tests.world.generate import overload, world
from tests.world.policies import Ours
from tests.world.rivals import Oracle, Plain, Threshold
from tests.world.scenario import CONFIG, Scenario, play, read, settings_of
from tests.world.script import Script
from tests.world.world import World

SCENARIOS = Path(__file__).parents[1] / "core" / "scenarios"
TF_ALONE = """
mode = "A"
[backends]
tensorflow = { command = ["tensorflow_model_server"], models = { resnet50 = "/srv/m" } }
[modes.A]
tensorflow = { gpu = 0, memory = "20%" }
"""
FASTER = 100.0  # times real time; 1,000 is usual, and what `make bench-policies` shows


def up(duration_s: float = 0.5) -> World:
    """The three engines of the README, all ready."""
    return play(Scenario("x", "x", settings_of(CONFIG), duration_s))


def test_every_byte_is_somebodys_at_every_moment() -> None:
    """Used = held by the living + not yet back of the dead, through a whole overload."""

    def each(one: World) -> None:
        for card in one.cards.values():
            held = sum(proc.held for proc in card.procs.values())
            assert card.used == held + card.ghosts
            assert 0 <= card.used <= card.device.capacity_bytes

    play(read(SCENARIOS / "fast-leak.toml"), each=each)


def test_what_does_not_fit_is_the_end_of_who_asked() -> None:
    """TensorFlow leaks until its own allocation fails, under no policy at all."""
    scenario = read(SCENARIOS / "fast-leak.toml")
    plain = play(replace(scenario, duration_s=40.0), Plain())
    ooms = [one for one in plain.monitor.ooms if one.at >= plain.monitor.began]
    assert ooms
    assert min(plain.monitor.least_free.values()) < 256 * MIB


def test_a_tick_has_a_reading_of_its_own_and_a_drop_is_looked_at_twice() -> None:
    """As the loop and the worker do it."""
    one = up()
    seen: list[tuple[float, float]] = []
    decide = one.policy.decide

    def spy(observation: Any, settings: Any) -> Any:
        for device in observation.devices.values():
            assert isinstance(device.memory, Known)
            seen.append((observation.now, device.memory.at))
        return decide(observation, settings)

    one.policy.decide = spy  # type: ignore[method-assign]
    one.tick(4)
    assert all(abs(now - at) < 1e-6 for now, at in seen)
    seen.clear()
    Script(one).stranger("job", "2GiB")
    began = one.now
    one.tick(3)
    times = sorted({at - began for _, at in seen})
    assert times[0] <= 0.1, "woken by a look"
    assert times[1] - times[0] < 0.03, "and by the second one"


def test_a_hung_driver_is_late_then_blind_then_back() -> None:
    """After 1 s, after 3 s, and when it answers again."""
    one = up()
    Script(one).blind("5s")
    states = set()
    for _ in range(32):
        one.tick()
        states |= {d.state for d in one.nvml.latest()[0].values()}
    assert states == {GpuState.OK, GpuState.HUNG}
    assert one.nvml.latest()[1] == ""


def test_the_threshold_killer_kills_the_largest_guilty_or_not() -> None:
    """And the oracle the guilty one: what the figures of the comparison rest on."""
    scenario = replace(read(SCENARIOS / "fast-leak.toml"), duration_s=40.0)
    killer = play(scenario, Threshold())
    assert [one.backend for one in killer.monitor.disruptions if not one.over] == ["vllm"]
    oracle = Oracle()

    def knows(one: World) -> None:
        oracle.world = one

    world_ = play(scenario, oracle, knows)
    assert {one.backend for one in world_.monitor.disruptions} == {"tensorflow"}
    assert not [one for one in world_.monitor.ooms if one.at >= world_.monitor.began]


def test_the_threshold_killer_signals_strangers_and_that_is_counted() -> None:
    """The counter of foreign signals is one that can rise."""
    one = play(Scenario("x", "x", settings_of(TF_ALONE), 1.0), Threshold())
    Script(one).stranger("training", "18800MiB")
    one.run(5.0)
    assert one.monitor.foreign_signals == 1


@pytest.mark.parametrize("make", [lambda: overload(7), lambda: world(random.Random(7))])
def test_the_same_seed_is_the_same_world(make: Any) -> None:
    """Every event told, every byte."""
    first, second = play(make()), play(make())
    assert list(first.monitor.events) == list(second.monitor.events)
    assert [c.used for c in first.cards.values()] == [c.used for c in second.cards.values()]


class Timed(Ours):
    """Core's own time, apart."""

    spent = 0.0

    def decide(self, observation: Any, settings: Any) -> Any:
        """And the clock."""
        began = time.process_time()
        decision = super().decide(observation, settings)
        self.spent += time.process_time() - began
        return decision


def test_the_world_beside_core_runs_far_faster_than_real_time() -> None:
    """Three loaded engines at 250 ms; CPU time, so that a busy machine matters little."""
    policy = Timed()
    one = play(Scenario("x", "x", settings_of(CONFIG), 0.5), policy)
    script = Script(one)
    for name in ("tensorflow", "vllm", "ollama"):
        script.load(name, 4)
    best = 0.0
    for _ in range(3):
        policy.spent, began = 0.0, time.process_time()
        one.run(150.0)
        best = max(best, 150.0 / (time.process_time() - began - policy.spent))
    assert best > FASTER, f"{best:.0f} times"


def test_a_model_that_is_asked_for_is_loaded_and_leaves_when_idle() -> None:
    """The gate's protocol, eviction and keep-alive."""
    text = CONFIG.replace(
        'models = ["qwen2.5:3b"]', 'models = ["qwen2.5:3b", "tiny"], keep_alive = "20s"'
    )
    one = play(Scenario("x", "x", settings_of(text), 0.5))
    one.natures["ollama"] = replace(
        one.natures["ollama"], models={"tiny": GIB, "qwen2.5:3b": 2 * GIB}
    )
    one.engines["ollama"].nature = one.natures["ollama"]
    Script(one).want("ollama", "tiny")
    one.run(10.0)
    assert [m.name for m in one.engines["ollama"].loaded()] == ["tiny"]
    one.run(60.0)
    assert [m.name for m in one.engines["ollama"].loaded()] == ["qwen2.5:3b"]
    assert one.loads.granted == 1
