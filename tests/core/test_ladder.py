"""The ladder as facts about an imaginary host: who is held, who is reined in, who is never touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arbiterd.core.limits import DISRUPTIVE_MAX, STEP_BYTES
from arbiterd.core.memory import slope
from arbiterd.core.memory.ledger import FOREIGN
from arbiterd.model.actions import (
    FreezeBackend,
    KillProcesses,
    SleepBackend,
    StopBackend,
    UnloadModel,
    Verb,
)
from arbiterd.model.backend import Phase
from arbiterd.model.devices import Pressure
from arbiterd.model.engine_options import TensorflowOptions, VllmOptions
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Admit, LoadVerdict
from arbiterd.model.observation import HostFacts
from arbiterd.model.pressure import PressureView, Rung
from arbiterd.quantities import GIB, MIB
from tests.core.world import OLLAMA, VLLM, World, only, settings

GPU = "GPU-0"


def detail(world: World) -> PressureView:
    """The numbers behind the band."""
    assert world.decision is not None
    found = world.decision.devices[GPU].detail
    assert found is not None
    return found


def band(world: World) -> Pressure:
    """The band now."""
    assert world.decision is not None
    return world.decision.devices[GPU].pressure


def grow(world: World, name: str, rate_mib_s: float, seconds: float) -> None:
    """An engine takes so much a second; as a process does, only while it lives."""
    for _ in range(round(seconds / 0.25)):
        engine = world.engines.get(name)
        if engine is not None and engine.alive:
            engine.held += int(rate_mib_s * MIB / 4)
        world.tick()


def grow_until_critical(world: World, name: str, rate_mib_s: float) -> None:
    """At this rate until the first critical sample."""
    while band(world) is not Pressure.CRITICAL:
        grow(world, name, rate_mib_s, 0.25)
        assert world.used(GPU) < 24 * GIB, "it overflowed"


def actions(world: World, kind: type) -> int:
    """How many such actions were ordered so far."""
    return sum(1 for one in world.ordered if isinstance(one, kind))


# -- bands -------------------------------------------------------------------------------------------
def test_planned_use_is_calm_however_full_the_card_is() -> None:
    """Growth inside a cap is never pressure."""
    world = World(settings()).up()
    for name in ("tensorflow", "vllm", "ollama"):
        world.engines[name].held = world.view(name).cap_bytes
    world.tick(200)
    assert band(world) is Pressure.CALM
    assert world.told(EventName.PRESSURE_RISE) == 0
    assert world.stopped == []


def test_free_memory_under_the_line_is_critical_at_the_first_sample() -> None:
    """Loads are held at one sample, a reclaim needs two."""
    world = World(settings()).up()
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 100 * MIB)
    world.tick()
    assert band(world) is Pressure.CRITICAL
    assert world.state.devices[GPU].ladder.loads_held
    # A fixed pool takes nothing by requests, nor does a model that is resident: nobody is held for a stranger.
    assert all(world.door(name).admit is Admit.UP for name in ("tensorflow", "vllm", "ollama"))
    assert world.unloads == []
    world.tick()
    assert world.unloads == ["qwen2.5:3b"]


def test_short_on_the_books_only_loads_need_a_margin_and_nobody_is_trimmed() -> None:
    """Tight, but memory is there: an idle model stays."""
    world = World(settings()).up()
    world.engines["ollama"].held = 500 * MIB
    world.strangers[7] = (GPU, 3 * GIB)
    world.tick(16)
    assert band(world) is Pressure.TIGHT
    assert world.unloads == []
    answer = world.ask_load("big", 4 * GIB)
    assert answer.verdict is LoadVerdict.WAIT


def test_calm_comes_back_after_its_dwell_and_every_shed_is_undone() -> None:
    """Twenty seconds, then doors and loads are open again and the incident is closed."""
    world = World(settings()).up()
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 100 * MIB)
    world.tick(8)
    assert band(world) is Pressure.CRITICAL
    world.strangers.clear()
    world.tick(8)
    assert band(world) is not Pressure.CRITICAL
    world.tick(160)
    assert band(world) is Pressure.CALM
    assert world.door("ollama").admit is Admit.UP
    assert world.told(EventName.PRESSURE_CALM) >= 1
    assert world.decision is not None
    assert all(one.closed_at is not None for one in world.decision.incidents)
    assert world.loads.count("qwen2.5:3b") == 2  # trimmed, and kept warm again once calm


# -- foreign memory ------------------------------------------------------------------------------------
def test_a_stranger_is_named_at_once_and_never_signalled() -> None:
    """pid, user, command and unit; brakes and trims only; nobody is stopped for him."""
    world = World(settings()).up()
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 50 * MIB)
    world.tick(2)
    assert world.told(EventName.FOREIGN_MEMORY) == 1
    assert world.decision is not None
    incident = next(i for i in world.decision.incidents if i.event is EventName.FOREIGN_MEMORY)
    assert incident.pids == (7,)
    assert "pid 7 (python of bob, x.service)" in incident.summary
    world.tick(400)
    assert world.stopped == []
    assert actions(world, KillProcesses) == 0
    assert all(world.phase(n) is Phase.READY for n in ("tensorflow", "vllm", "ollama"))


def test_flapping_foreign_memory_is_one_incident() -> None:
    """In and out each second for a minute: named once, closed once."""
    world = World(settings()).up()
    for turn in range(60):
        world.strangers = {7: (GPU, 2 * GIB)} if turn % 2 else {}
        world.tick(4)
    assert world.told(EventName.FOREIGN_MEMORY) == 1
    world.strangers = {}
    world.tick(100)
    assert world.told(EventName.FOREIGN_MEMORY) == 1
    assert world.told(EventName.RECOVERED) == 1


# -- the guilty ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("grows", [True, False])
def test_a_leak_is_named_and_throttled_long_before_it_is_restarted(*, grows: bool) -> None:
    """Over its cap and not critical: named only, and throttled where requests make it grow; let go once it
    grows no more.
    """
    given = settings()
    mode = given.modes["A"]
    one = replace(mode.backends["tensorflow"], tensorflow=TensorflowOptions(memory_growth=grows))
    modes = {"A": replace(mode, backends={**mode.backends, "tensorflow": one})}
    world = World(replace(given, modes=modes)).up()
    grow(world, "tensorflow", 100, 13)
    assert world.told(EventName.LEAK, "tensorflow") == 1
    assert band(world) is Pressure.TIGHT
    grow(world, "tensorflow", 40, 3)
    assert (world.door("tensorflow").max_in_flight < 8) is grows
    grow(world, "tensorflow", 0, 60)
    assert world.door("tensorflow").max_in_flight == 8
    assert world.stopped == []


@pytest.mark.parametrize("rate", [20, 200, 800, 2000])
def test_a_runaway_is_ended_before_the_card_overflows(rate: int) -> None:
    """At any of these rates; nobody else is touched."""
    world = World(settings()).up()
    before = {n: world.engines[n].pid for n in ("vllm", "ollama")}
    for _ in range(round(9000 / rate * 4)):
        engine = world.engines.get("tensorflow")
        if engine is None or engine.ready_after > world.now:
            break
        engine.held += rate * MIB // 4
        free = 24 * GIB - 400 * MIB - world.used(GPU)
        if free < 0:
            pytest.fail(f"overflow at {rate} MiB/s")
        world.tick()
    assert world.stopped == ["tensorflow"]
    assert {n: world.engines[n].pid for n in before} == before
    assert world.told(EventName.RECLAIM, "tensorflow") >= 1
    world.until("tensorflow", Phase.READY)


def test_the_lowest_priority_of_two_growers_goes() -> None:
    """Both over their caps, both growing: TensorFlow (20) before vLLM (30)."""
    world = World(settings()).up()
    while not world.stopped:
        for name in ("tensorflow", "vllm"):
            world.engines[name].held += 40 * MIB
        world.tick()
        assert world.used(GPU) < 24 * GIB
    assert world.stopped == ["tensorflow"]


def test_priority_is_no_shield_for_the_guilty() -> None:
    """Only vLLM, the highest priority, is over its cap: it goes, not the lowest."""
    world = World(settings()).up()
    while not world.stopped:
        world.engines["vllm"].held += 60 * MIB
        world.tick()
    assert world.stopped == ["vllm"]


def test_a_leak_that_comes_back_is_stopped_in_the_end() -> None:
    """Restarted three times, then stopped until its half-open probe; never more than the bound."""
    world = World(settings()).up()
    for _ in range(1600):
        engine = world.engines.get("tensorflow")
        if engine is not None and engine.alive and world.phase("tensorflow") is Phase.READY:
            engine.held += 100 * MIB
        world.tick()
        if world.phase("tensorflow") is Phase.FAILED:
            break
    assert world.phase("tensorflow") is Phase.FAILED
    assert world.stopped == ["tensorflow"] * 4
    assert detail(world).disruptive <= DISRUPTIVE_MAX


def test_the_bound_ends_the_ladder_at_brakes() -> None:
    """Six interventions in ten minutes; the seventh is left to people."""
    world = World(settings()).up()
    state = world.state.devices[GPU]
    times = (world.now,) * DISRUPTIVE_MAX
    full = state.having(ladder=state.ladder.disturbed(times))
    world.state = replace(world.state, devices={GPU: full})
    grow_until_critical(world, "vllm", 100)
    grow(world, "vllm", 100, 2)
    assert world.stopped == []
    assert band(world) is Pressure.CRITICAL
    assert any("manual intervention required" in one.reason for one in detail(world).candidates)


# -- trim ----------------------------------------------------------------------------------------------
def test_an_unload_that_is_ignored_ends_in_the_death_of_that_runner_alone() -> None:
    """ollama #7779: 'Stopping...' for ever; the child is killed, its engine goes on."""
    world = World(settings(), unload_ignored=True).up()
    pid = world.engines["ollama"].pid
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 100 * MIB)
    world.tick(40)
    assert actions(world, KillProcesses) == 1
    assert world.engines["ollama"].held == 0
    assert world.engines["ollama"].pid == pid
    assert world.phase("ollama") is Phase.READY


def test_no_second_reclaim_while_one_is_in_flight() -> None:
    """25 s of release: bytes are on their way, nobody else is asked."""
    world = World(settings(), lag_s=15.0).up()
    grow_until_critical(world, "tensorflow", 300)
    world.tick(4)
    assert world.stopped == ["tensorflow"]
    world.tick(40)
    assert world.stopped == ["tensorflow"]
    assert world.unloads == []


# -- sleep ---------------------------------------------------------------------------------------------
def _sleeper() -> World:
    vllm = replace(VLLM, vllm=VllmOptions(sleep=True))
    given = settings()
    mode = given.modes["A"]
    backends = {**mode.backends, "vllm": vllm}
    made = replace(given, modes={"A": replace(mode, backends=backends)})
    return World(made, host=HostFacts(ram_free_bytes=64 * GIB)).up()


def test_an_operator_puts_vllm_to_sleep_and_wakes_it() -> None:
    """Drained, bytes checked, nothing let in; woken only with room, open after an answer."""
    world = _sleeper()
    held = world.engines["vllm"].held
    world.ask(Verb.SLEEP, "vllm")
    world.until("vllm", Phase.SLEEPING)
    world.tick(8)
    assert "asleep" in world.view("vllm").reason
    assert world.engines["vllm"].held == GIB
    assert world.door("vllm").admit is Admit.SHED
    world.tick(200)
    assert world.phase("vllm") is Phase.SLEEPING  # it stays so until it is asked
    world.strangers[7] = (GPU, held)
    world.ask(Verb.WAKE, "vllm")
    world.tick(8)
    assert "needs" in world.view("vllm").reason
    world.strangers.clear()
    world.until("vllm", Phase.READY)
    assert world.engines["vllm"].held == held
    assert world.told(EventName.WAKE, "vllm") >= 1


def test_a_sleep_that_frees_nothing_ends_in_a_restart() -> None:
    """It says 200 and holds everything: in no known state."""
    world = _sleeper()
    world.sleep_frees = False
    world.ask(Verb.SLEEP, "vllm")
    world.until("vllm", Phase.SLEEPING)
    world.until("vllm", Phase.STOPPING, ticks=300)
    world.until("vllm", Phase.READY)
    assert world.stopped == ["vllm"]


def test_vllm_over_its_cap_sleeps_rather_than_dies_when_there_is_time() -> None:
    """Critical, not growing: the mildest rung that frees enough."""
    world = _sleeper()
    world.engines["ollama"].loaded = ()
    world.engines["ollama"].held = 0
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.engines["vllm"].held += free - 100 * MIB
    world.tick(20)
    assert actions(world, SleepBackend) == 1
    assert world.stopped == []


def test_who_cannot_wake_for_what_it_held_beyond_its_cap_starts_anew() -> None:
    """Its neighbours take what is theirs meanwhile: there is room for its cap, not for its excess."""
    world = _sleeper()
    world.engines["ollama"].loaded, world.engines["ollama"].held = (), 0
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.engines["vllm"].held += free - 100 * MIB
    world.until("vllm", Phase.SLEEPING, ticks=40)
    world.engines["ollama"].held = 4 * GIB
    world.until("vllm", Phase.STARTING, ticks=400)
    stop = next(one for one in world.ordered if isinstance(one, StopBackend))
    assert "held more than its cap" in stop.reason
    world.until("vllm", Phase.READY)
    assert world.stopped == ["vllm"]


# -- freeze --------------------------------------------------------------------------------------------
def test_a_runaway_that_may_not_be_killed_is_frozen_once_a_minute() -> None:
    """The bound is reached: the freezer is the last brake, two seconds of it."""
    world = World(settings()).up()
    state = world.state.devices[GPU]
    times = (world.now,) * DISRUPTIVE_MAX
    full = state.having(ladder=state.ladder.disturbed(times))
    world.state = replace(world.state, devices={GPU: full})
    while not world.frozen:
        grow(world, "vllm", 150, 0.25)
        assert world.used(GPU) < 24 * GIB, "it overflowed"
    grow(world, "vllm", 10, 10)
    assert world.frozen == ["vllm"]
    assert actions(world, FreezeBackend) == 1


# -- blind ---------------------------------------------------------------------------------------------
def test_blind_nothing_is_reclaimed() -> None:
    """A missing reading never justifies a kill."""
    world = World(settings()).up()
    world.engines["vllm"].held += 3 * GIB
    world.blind = "hung for 5.2 s"
    world.tick(200)
    assert actions(world, StopBackend) == 0
    assert actions(world, UnloadModel) == 0


def test_the_first_sample_after_blindness_alone_ends_nobody() -> None:
    """Two samples are needed again."""
    world = World(only("vllm")).up()
    world.engines["vllm"].held = 24 * GIB - 500 * MIB
    world.blind = "hung"
    world.tick(20)
    world.blind = ""
    world.tick()
    assert world.stopped == []


# -- slope ---------------------------------------------------------------------------------------------
def test_a_ramp_has_its_slope_and_one_step_has_none() -> None:
    """Robust: a third of wild samples does not move it; a model's load is no ramp."""
    ramp: slope.Window = ()
    for i in range(20):
        ramp = slope.push(ramp, i * 0.25, i * 25 * MIB + (100 * MIB if i % 4 == 0 else 0))
    found = slope.slope(ramp)
    assert found is not None
    assert 90 * MIB < found < 110 * MIB
    step: slope.Window = ()
    for i in range(12):
        step = slope.push(step, i * 0.25, 0 if i < 5 else 3 * GIB)
    assert slope.slope(step) == 0.0
    assert slope.slope(step[:6]) is None


def test_two_large_steps_upwards_are_a_steep_ramp_at_once() -> None:
    """Faster than the poll can follow: the mean of the steps, without six samples."""
    window: slope.Window = ()
    for i in range(3):
        window = slope.push(window, i * 0.25, i * 2 * STEP_BYTES)
    assert slope.slope(window) == pytest.approx(8 * STEP_BYTES)


def test_a_gap_forgets_what_lies_before_it() -> None:
    """Never across a gap."""
    window = slope.push(slope.push((), 0.0, 1), 5.0, 2)
    assert window == ((5.0, 2),)


def test_candidates_say_why_each_is_or_is_not_the_one() -> None:
    """Every backend of the card has its sentence."""
    world = World(settings()).up()
    while band(world) is not Pressure.CRITICAL:
        world.engines["vllm"].held += 60 * MIB
        world.tick()
    found = {(one.backend, one.rung): one.reason for one in detail(world).candidates}
    assert "never touched for a neighbour" in found["tensorflow", Rung.RESTART]
    assert "over its cap" in found["vllm", Rung.RESTART]
    assert any(holder.name == "vllm" for holder in detail(world).holders)
    assert FOREIGN not in {holder.name for holder in detail(world).holders}


def test_ollamas_warm_model_is_not_loaded_into_a_tight_card() -> None:
    """It was trimmed: it comes back when the card is calm."""
    world = World(only("vllm", "ollama")).up()
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 100 * MIB)
    world.tick(40)
    assert world.unloads == ["qwen2.5:3b"]
    loads = len(world.loads)
    world.tick(400)
    assert len(world.loads) == loads
    assert OLLAMA.models == ("qwen2.5:3b",)


# -- ramps as they are sampled -------------------------------------------------------------------------
FLAT = tuple((n * 0.25, 0) for n in range(8))


def _then(*steps: tuple[float, int]) -> slope.Window:
    """A flat window that goes on with (seconds, MiB) steps."""
    out = list(FLAT)
    for seconds, mib in steps:
        out.append((out[-1][0] + seconds, out[-1][1] + mib * MIB))
    return tuple(out)


def test_a_second_look_after_25_ms_sees_the_same_ramp() -> None:
    """A tenth of the bytes in a tenth of the time: 8 GiB/s is confirmed, not forgotten."""
    found = slope.slope(_then((0.25, 2048), (0.025, 205)))
    assert found == pytest.approx(8 * GIB, rel=0.01)


def test_steps_around_the_size_of_a_step_are_a_ramp_all_the_same() -> None:
    """1 GiB/s at a poll of 250 ms: each sample comes to 256 MiB, more or less."""
    for ramp in ((240, 270), (270, 240), (250, 250, 262, 249)):
        found = slope.slope(_then(*((0.25, mib) for mib in ramp)))
        assert found == pytest.approx(GIB, rel=0.05), ramp


def test_one_step_is_no_ramp_however_often_it_is_looked_at() -> None:
    """A model was loaded; what lies between two samples 5 ms apart says nothing either."""
    assert slope.slope(_then((0.25, 3000), (0.025, 0))) is None
    assert slope.slope(_then((0.25, 3000), (0.005, 10))) is None
    assert slope.slope(_then((0.1, 60), (0.1, 60))) == 0.0, "noise within the size of a step"
