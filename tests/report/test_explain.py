"""Pressure in sentences: the arithmetic adds up, and every number on the ladder is told."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from arbiterd.model.backend import DeviceView
from arbiterd.model.devices import Pressure
from arbiterd.model.pressure import Candidate, PressureView, ReclaimView, Rung
from arbiterd.quantities import GIB, MIB, format_size
from arbiterd.report import explain
from tests.core.world import World, only, settings


def _view(world: World) -> DeviceView:
    assert world.decision is not None
    return world.decision.devices["GPU-0"]


def _detail(world: World) -> PressureView:
    detail = _view(world).detail
    assert detail is not None
    return detail


def _stranger(world: World, size: int) -> World:
    world.strangers[4711] = ("GPU-0", size)
    return world


def test_solvency_is_the_sum_of_its_terms_calm_and_tight() -> None:
    """Capacity - granted - foreign beyond its allowance - unattributed, to the byte."""
    world = World(settings()).up()
    for size in (0, 400 * MIB, 1300 * MIB):
        _stranger(world, size).tick(12)
        one = _detail(world)
        assert one.granted_bytes is not None
        assert one.solvency_bytes == (
            one.capacity_bytes
            - one.granted_bytes
            - (one.foreign_over_bytes or 0)
            - (one.unattributed_bytes or 0)
        )
        # nobody is over a cap here, so what is granted is the sum of the caps
        assert one.granted_bytes == sum(
            row.cap_bytes or 0 for row in _view(world).rows if row.holder in world.engines
        )
    assert one.foreign_over_bytes == 1300 * MIB - 512 * MIB


def test_the_sentence_of_a_tight_card_has_the_limits_and_the_stranger() -> None:
    """What the operator needs to see why."""
    world = _stranger(World(settings()).up(), 1300 * MIB)
    world.tick(12)
    view, detail = _view(world), _detail(world)
    assert view.pressure is Pressure.TIGHT
    solvency = format_size(detail.solvency_bytes or 0)
    tight, calm = format_size(detail.tight_below), format_size(detail.calm_above)
    assert explain.reason(view) == f"solvency {solvency} is below {tight}, half the headroom"
    told = explain.sentences(view)
    assert told[0] == f"tight: {explain.reason(view)}"
    capacity = format_size(detail.capacity_bytes)
    assert re.match(
        rf"solvency {solvency} = {capacity} capacity - [\d.]+ GiB granted \(.*\) - 788 MiB foreign "
        rf"beyond its allowance; tight below {tight}, calm above {calm}$",
        told[1],
    )
    assert any(one.startswith("foreign: 788 MiB beyond its allowance") for one in told)
    assert any("vllm" in one and "never touched for a neighbour" in one for one in told)


def test_a_tight_card_on_its_way_back_says_for_how_long_still() -> None:
    """Solvency is whole again, the dwell is not over."""
    world = _stranger(World(settings()).up(), 1300 * MIB)
    world.tick(12)
    world.strangers.clear()
    world.tick(8)
    assert _view(world).pressure is Pressure.TIGHT
    assert "calm again once it has been above" in explain.reason(_view(world))
    assert "for 20.0 s" in explain.reason(_view(world))


def test_a_leak_is_told_with_its_growth_the_brakes_and_who_was_chosen() -> None:
    """From the first growth over the cap to the reclaim of the guilty one."""
    world = World(only("tensorflow", "vllm")).up()
    engine = world.engines["vllm"]
    told: list[str] = []
    for _ in range(100):
        engine.held += 100 * MIB
        world.tick()
        told = explain.sentences(_view(world))
        if _detail(world).reclaim is not None:
            break
    text = "\n".join(told)
    assert told[0].startswith("critical: "), text
    assert re.search(r"are held beyond what is granted, growing 400 MiB/s: full in ", text)
    assert re.search(r"^vllm: [\d.]+ GiB over its cap, growing 400 MiB/s$", text, re.MULTILINE)
    assert re.search(r"^vllm is braked: ", text, re.MULTILINE)
    assert re.search(
        r"^reclaim in flight: restart of vllm, .* expected, 0 B back", text, re.MULTILINE
    )
    assert re.search(r"^chosen: restart of vllm, .*over its cap", text, re.MULTILINE)
    assert re.search(r"^considered: restart of tensorflow, .*within its cap", text, re.MULTILINE)
    assert re.search(r"^no model may be loaded: GPU 0 is critical", text, re.MULTILINE)
    assert "1 of at most 6 interventions within 10 min" in told


def test_a_blind_card_says_so_instead_of_numbers() -> None:
    """No arithmetic on what cannot be read."""
    world = World(settings()).up()
    world.blind = "hung"
    world.tick(4)
    told = explain.sentences(_view(world))
    assert told[0].startswith("unknown: no fresh reading")
    assert any(one.startswith("free memory cannot be read") for one in told)
    assert not any(one.startswith("solvency") for one in told)


BASE = PressureView(
    solvency_bytes=2 * GIB,
    free_bytes=3 * GIB,
    tight_below=481 * MIB,
    calm_above=866 * MIB,
    critical_below=256 * MIB,
    excess_bytes=0,
    slope=None,
    time_to_full_s=None,
    lead_s=2.0,
)


@pytest.mark.parametrize(
    ("band", "changes", "expected"),
    [
        (Pressure.CALM, {}, "solvency 2.00 GiB, tight below 481 MiB"),
        (
            Pressure.CALM,
            {"solvency_bytes": 100 * MIB},
            "solvency 100 MiB is below 481 MiB, but not for 2.0 s yet",
        ),
        (Pressure.CRITICAL, {"free_bytes": 180 * MIB}, "180 MiB free is below 256 MiB"),
        (
            Pressure.CRITICAL,
            {"time_to_full_s": 1.2},
            "full in 1.2 s, which is less than twice the 2.0 s that a reclaim takes and a second",
        ),
        (
            Pressure.CRITICAL,
            {},
            "memory that nobody granted was being taken; tight again once that has stopped for 2.0 s and 384 MiB are free",
        ),
    ],
)
def test_each_band_names_its_condition(
    band: Pressure, changes: dict[str, int], expected: str
) -> None:
    """One sentence with the numbers."""
    detail = replace(BASE, **changes)  # type: ignore[arg-type]
    assert explain.reason(DeviceView("GPU-0", band, (), None, detail)) == expected


def test_what_is_in_flight_spent_or_broken_is_told() -> None:
    """A reclaim with its bytes, the bound, a fault."""
    detail = replace(
        BASE,
        reclaim=ReclaimView(Rung.TRIM, "qwen", "idle", 1e9, 2 * GIB, 512 * MIB, "asked", "inc-1"),
        candidates=(Candidate("ollama", Rung.TRIM, 2 * GIB, True, "idle"),),
        disruptive=6,
        disruptive_max=6,
        fault="XID 79: it has fallen off the bus",
        releasing_bytes=64 * MIB,
        granted_bytes=GIB,
    )
    told = explain.sentences(DeviceView("GPU-0", Pressure.CALM, (), None, detail))
    assert (
        "reclaim in flight: trim of qwen, 2.00 GiB expected, 512 MiB back so far (asked): idle"
        in told
    )
    assert "6 of at most 6 interventions within 10 min: manual intervention required" in told
    assert "nothing is started there: XID 79: it has fallen off the bus" in told
    assert any(one.startswith("64 MiB of the dead are on their way back") for one in told)
