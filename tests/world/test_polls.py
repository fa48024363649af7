"""Every value that `poll` may have: a leak is told by its slope, its owner goes, nobody else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.model.events import EventName
from tests.world.policies import Ours
from tests.world.scenario import play, read

LEAK = Path(__file__).parents[1] / "core" / "scenarios" / "fast-leak.toml"


@pytest.mark.parametrize("poll_s", [0.05, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_a_leak_ends_its_owner_alone_at_every_poll(poll_s: float) -> None:
    """Before the card is full, and a driver that answers is not called hung."""
    scenario = read(LEAK)
    arbiter = replace(scenario.settings.arbiter, poll_s=poll_s)
    scenario = replace(
        scenario, settings=replace(scenario.settings, arbiter=arbiter), duration_s=60.0
    )
    monitor = play(scenario, Ours()).monitor
    told = {event.name for _, event in monitor.events}
    assert monitor.disruptions
    assert all(one.over for one in monitor.disruptions)
    assert not monitor.ooms
    assert not monitor.unloads, "an innocent model"
    assert EventName.DRIVER_HUNG not in told
