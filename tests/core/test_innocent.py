"""Service that nobody has to lose: footprints, broken cards, processes that cannot be ended."""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.incidents import dwell_s
from arbiterd.core.limits import CALM_MAX_S, CALM_S, HALF_OPEN_S, LINE_AFTER_S
from arbiterd.core.memory.lines import forgiven
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Incident, Severity
from arbiterd.model.launch import Exit
from arbiterd.quantities import GIB, MIB
from tests.core.world import World, only, settings

GPU = "GPU-0"


def test_a_line_is_what_is_held_five_minutes_after_ready() -> None:
    """Up to the bound; a start draws it anew."""
    world = World(settings()).up()
    world.engines["vllm"].held += 500 * MIB
    world.tick(round((LINE_AFTER_S - 20) * 4))
    assert world.state.backends["vllm"].run.line == {}
    world.tick(30 * 4)
    held = world.engines["vllm"].held
    assert world.state.backends["vllm"].run.line == {GPU: held}
    assert "vllm" not in world.state.devices[GPU].sampled.over_since
    assert world.stopped == []
    world.die("vllm", Exit(signal=9))
    world.until("vllm", Phase.STARTING)
    assert world.state.backends["vllm"].run.line == {}


def test_so_much_is_forgiven() -> None:
    """1 GiB, or a tenth of a large cap."""
    assert forgiven(4 * GIB) == GIB
    assert forgiven(40 * GIB) == 4 * GIB


def test_a_backend_on_a_lost_card_takes_no_work_and_is_not_ended() -> None:
    """Its requests would hang; one that cannot be read for a moment may be well."""
    world = World(settings()).up()
    world.blind = "hung"
    world.tick(4)
    assert all(world.view(name).accepting for name in ("vllm", "tensorflow"))
    world.blind = ""
    world.lost.add(0)
    world.tick(2)
    for name in ("vllm", "tensorflow", "ollama"):
        view = world.view(name)
        assert not view.accepting
        assert "GPU 0 is lost" in view.reason
        assert view.phase is Phase.READY


def test_what_sigkill_does_not_end_is_killed_once_told_once_and_failed() -> None:
    """A process in the D state: no second kill while it hangs, and a start once it is gone."""
    world = World(only("vllm")).up()
    world.unkillable.add("vllm")
    world.die("vllm", Exit(signal=9))
    engine = world.engines["vllm"]
    world.until("vllm", Phase.FAILED)
    told = len(world.events)
    world.tick(40)
    assert world.stopped == ["vllm"]
    assert world.told(EventName.RELEASE_SLOW) == 1
    assert len(world.events) == told
    assert "cannot be ended" in world.view("vllm").reason
    world.unkillable.clear()
    del engine
    world._end("vllm")
    world.until("vllm", Phase.READY)
    assert world.stopped == ["vllm"]


def test_a_process_that_cannot_be_ended_is_looked_at_again() -> None:
    """Each five minutes."""
    world = World(only("vllm")).up()
    world.unkillable.add("vllm")
    world.die("vllm", Exit(signal=9))
    world.until("vllm", Phase.FAILED)
    world.tick(round(HALF_OPEN_S * 4) + 4)
    assert world.stopped == ["vllm", "vllm"]


def test_nothing_is_called_late_while_nothing_can_be_seen() -> None:
    """Blind for a minute in the middle of a release: silent."""
    world = World(only("vllm"), lag_s=10.0).up()
    world.die("vllm", Exit(signal=9))
    world.until("vllm", Phase.STOPPING)
    world.tick(2)
    world.blind = "hung"
    world.tick(60 * 4)
    assert world.told(EventName.RELEASE_SLOW) == 0


def test_what_comes_back_must_be_away_for_longer_each_time() -> None:
    """Twice as long, up to a bound; other cards and old stories do not count."""
    one = Incident("i", EventName.PRESSURE_RISE, Severity.ERROR, 1000.0, "", gpu=GPU)
    rise = EventName.PRESSURE_RISE
    assert dwell_s((), rise, GPU, 1000.0) == CALM_S
    assert dwell_s((one,), rise, GPU, 1000.0) == CALM_S
    assert dwell_s((one, one, one), rise, GPU, 1000.0) == 4 * CALM_S
    assert dwell_s((one,) * 60, rise, GPU, 1000.0) == CALM_MAX_S
    elsewhere = replace(one, gpu="GPU-1")
    assert dwell_s((one, elsewhere), rise, GPU, 1000.0) == CALM_S
    assert dwell_s((one, one), rise, GPU, 9000.0) == CALM_S
