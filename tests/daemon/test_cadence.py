"""When the next tick comes."""

from __future__ import annotations

import pytest

from arbiterd.core.limits import HEALTHY_S
from arbiterd.daemon.cadence import SOON_S, rest_s
from arbiterd.model.backend import Phase
from arbiterd.model.launch import Exit
from tests.core.world import World, only

POLLS = (0.05, 0.25, 1.0, 5.0)


@pytest.mark.parametrize("poll_s", POLLS)
def test_who_may_start_again_is_not_kept_waiting_for_a_poll(poll_s: float) -> None:
    """One tick soon after the one in which its bytes are back; that one starts it. All others rest for
    a poll.
    """
    world = World(only("vllm")).up()
    world.now += HEALTHY_S + 1.0
    world.tick(4)
    world.until("vllm", Phase.READY)
    world.die("vllm", Exit(signal=9))
    soon = []
    for _ in range(20):
        before = world.decision
        world.tick()
        assert world.decision is not None
        if rest_s(before, world.decision, poll_s) == SOON_S:
            soon.append(world.phase("vllm"))
            world.tick()
            soon.append(world.phase("vllm"))
    assert soon == [Phase.WAITING, Phase.STARTING]
    assert world.decision is not None
    assert rest_s(world.decision, world.decision, poll_s) == poll_s
