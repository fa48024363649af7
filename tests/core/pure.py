"""An observation of an imaginary world, without ticking it."""

from __future__ import annotations

from arbiterd.model.observation import Observation
from tests.core.world import World


def observation_of(world: World) -> Observation:
    """What the next tick would see."""
    return Observation(
        now=world.now + 0.25,
        wall=world.now + 1e9,
        jitter=0.5,
        devices={world.device(i).uuid: world._device(i) for i in range(world.gpus)},
        nvml=world.blind,
        units=world._units(),
        health=world._health(),
        host=world.host,
    )
