"""What holds in every world, whatever happens in it. ``make invariants`` runs thousands of them.

The monitor (tests/world/monitor.py) judges by the truth of the world, not by what core says:
no backend within its cap is ended or put to sleep for another; no stranger gets a signal; never two
reclaims on one card; disruptive actions within their bound; blind, nobody is touched; caps never
below their floor; the ledger adds up in every tick.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase as Life
from arbiterd.model.gateway import Admit
from tests.world.generate import world as random_world
from tests.world.scenario import Scenario, play
from tests.world.world import World

RUNS = int(os.environ.get("INVARIANT_RUNS", "10"))
CALM_S = 150.0
# No shrinking: a failure names the world by its seed, and one world is a small story already.
WORLDS = profile(
    max_examples=RUNS,
    deadline=None,
    derandomize="INVARIANT_RUNS" not in os.environ,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def told(scenario: Scenario, world: World) -> str:
    """A failure's story."""
    rows = [f"{e.at:8.2f} {e.what} {dict(e.given)}" for e in scenario.events]
    rows += [
        f"{at - world.monitor.began:8.2f} {e.name.value:16} {e.message}"
        for at, e in list(world.monitor.events)[-60:]
    ]
    return "\n".join(
        [f"seed {scenario.seed}, layout {list(scenario.settings.active.shares)}", *rows]
    )


def calm(world: World) -> None:
    """The trouble ends: what grew has stopped and is within its cap, strangers leave, drivers answer,
    operators let everybody work again.
    """
    for growth in world.growths:
        growth.over = growth.over or not growth.planned
    world.growths = [one for one in world.growths if not one.over]
    world.nvml.hung_until = world.nvml.stale_until = -1.0
    for proc in list(world.pids.values()):
        if not proc.holder:
            world.end(proc)
    for name in world.flows:
        fault = world.faults[name]
        fault.hung = fault.sick = fault.sleep_fails = False
        fault.ignores_unload = fault.ignores_term = False
        fault.crashes_left, fault.lag_s = 0, None
        engine = world.engines.get(name)
        if engine is not None and engine.held > engine.cap:
            engine.growing_proc().give(engine.held - engine.cap)
        world.ask(Verb.RESUME, name)
    arbiter = replace(world.settings.arbiter, poll_s=0.5)
    world.settings = replace(world.settings, arbiter=arbiter)


@given(st.integers(0, 2**32 - 1))
@WORLDS
def test_the_rules_hold_in_every_world_and_every_shed_is_followed_by_an_unshed(seed: int) -> None:
    """A random world, then calm: every rule, every door open again, every brake off."""
    scenario = random_world(random.Random(seed))
    world = play(scenario)
    assert not world.monitor.broken, f"{world.monitor.broken}\n{told(scenario, world)}"
    calm(world)
    for _ in range(3):
        world.run(CALM_S / 3)
        for name in world.flows:  # an engine that has failed too often waits for an operator
            world.ask(Verb.RESUME, name)
    world.run(30.0)
    story = told(scenario, world)
    assert not world.monitor.broken, f"{world.monitor.broken}\n{story}"
    assert world.monitor.foreign_signals == 0
    decision = world.decision
    assert decision is not None
    for name, wish in decision.gateway.backends.items():
        view = decision.backends[name]
        assert view.phase is Life.READY, f"{name} is {view.phase}: {view.reason}\n{story}"
        assert wish.admit in (Admit.UP, Admit.AWAY), f"{name}: {wish.why}\n{story}"
        usual = world.settings.active.backends[name].max_in_flight
        assert wish.max_in_flight == usual, f"{name} is still throttled\n{story}"
    for card in decision.devices.values():
        assert not card.detail or not card.detail.loads_held, f"{card.detail}\n{story}"
