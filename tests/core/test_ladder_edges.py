"""The ladder where two things happen at once: a reload, a blind card, several GPUs, an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from arbiterd.core.limits import DISRUPTIVE_MAX
from arbiterd.core.memory import learn
from arbiterd.core.memory.device_state import Reclaim
from arbiterd.model.actions import KillProcesses, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation, Pressure
from arbiterd.model.engine_options import VllmOptions
from arbiterd.model.events import EventName
from arbiterd.model.launch import Exit
from arbiterd.model.observation import HostFacts
from arbiterd.model.pressure import LearnedCap, Rung
from arbiterd.model.reading import Unknown
from arbiterd.model.settings import GpuRef, Mode, Settings, Share
from arbiterd.quantities import GIB, MIB
from tests.core.test_ladder import GPU, actions, band, detail, grow
from tests.core.world import VLLM, World, settings

ROOM = 24 * GIB - 400 * MIB


def _with_a_mode_without_vllm() -> Settings:
    whole = settings().modes["A"]
    shares = {n: one for n, one in whole.shares.items() if n != "vllm"}
    backends = {n: one for n, one in whole.backends.items() if n != "vllm"}
    return settings({"A": whole, "B": Mode("B", shares, backends)})


def _on_two_cards(*, sleep: bool) -> World:
    vllm = replace(VLLM, vllm=VllmOptions(sleep=sleep))
    share = Share("vllm", (GpuRef("index", "0"), GpuRef("index", "1")), fraction=0.5)
    made = settings({"A": Mode("A", {"vllm": share}, {"vllm": vllm})})
    return World(made, gpus=2, host=HostFacts(ram_free_bytes=64 * GIB)).up()


def _reclaims(world: World) -> list[Reclaim]:
    return [
        one.ladder.reclaim for one in world.state.devices.values() if one.ladder.reclaim is not None
    ]


def _leak_until_it_drains(world: World) -> None:
    """So slowly that its requests may still end."""
    engine = world.engines["vllm"]
    engine.running = 3
    while world.phase("vllm") is Phase.READY:
        engine.held += 8 * MIB
        engine.work += 1
        world.tick()
    assert world.phase("vllm") is Phase.DRAINING


def test_a_reload_that_drops_who_is_being_reined_in_goes_through() -> None:
    """Its drain goes on to its end; then it is put away."""
    world = World(_with_a_mode_without_vllm()).up()
    _leak_until_it_drains(world)
    world.switch("B")
    world.tick(200)
    assert "vllm" not in world.engines
    assert not _reclaims(world)


@pytest.mark.parametrize("sleep", [False, True])
def test_one_backend_on_two_cards_is_reined_in_once(*, sleep: bool) -> None:
    """Both cards are critical in the same tick: one reclaim, one failure at most."""
    world = _on_two_cards(sleep=sleep)
    if sleep:
        world.engines["vllm"].held += ROOM - world.used(GPU) - 100 * MIB
        world.tick(2)
        assert world.phase("vllm") is not Phase.READY
    else:
        _leak_until_it_drains(world)
    seen = [one.rung for one in _reclaims(world)]
    assert seen == [Rung.SLEEP if sleep else Rung.RESTART]
    world.tick(8)
    assert len(world.state.backends["vllm"].history.failures) == (0 if sleep else 1)


def test_a_freeze_that_ends_while_the_card_is_blind_has_ended() -> None:
    """Its outcome comes once: nobody is shown as frozen for ever, nor spared the next freeze."""
    world = World(settings()).up()
    state = world.state.devices[GPU]
    times = (world.now,) * DISRUPTIVE_MAX
    full = state.having(ladder=state.ladder.disturbed(times))
    world.state = replace(world.state, devices={GPU: full})
    while not world.frozen:
        grow(world, "vllm", 150, 0.25)
    world.blind = "hung"
    world.tick(8)
    assert not world.state.devices[GPU].ladder.braked["vllm"].freezing


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on memory is read, and process lists are not."""
    whole = World._device

    def without(self: World, index: int) -> DeviceObservation:
        seen = whole(self, index)
        return replace(seen, processes=Unknown("not permitted", self.now))

    return lambda: monkeypatch.setattr(World, "_device", without)


def test_who_was_over_his_cap_is_not_guilty_without_a_list(unlisted: Callable[[], None]) -> None:
    """An old list neither throttles nor kills."""
    world = World(settings()).up()
    world.engines["vllm"].held += GIB
    world.tick(20)
    assert world.state.devices[GPU].sampled.over_since
    unlisted()
    world.engines["vllm"].held -= GIB
    world.engines["ollama"].loaded, world.engines["ollama"].held = (), 0
    world.strangers[7] = (GPU, ROOM - world.used(GPU) - 50 * MIB)
    world.tick(40)
    assert band(world) is Pressure.CRITICAL
    assert world.stopped == []
    assert not any(
        "over its cap" in one.hold for one in world.state.devices[GPU].ladder.braked.values()
    )


def test_nobody_wakes_into_a_critical_card() -> None:
    """Free memory is there still, and somebody is taking it."""
    vllm = replace(VLLM, vllm=VllmOptions(sleep=True))
    given = settings()
    mode = given.modes["A"]
    modes = {"A": replace(mode, backends={**mode.backends, "vllm": vllm})}
    world = World(replace(given, modes=modes)).up()
    world.ask(Verb.SLEEP, "vllm")
    world.until("vllm", Phase.SLEEPING)
    world.tick(8)
    size = 0
    while band(world) is not Pressure.CRITICAL:
        size += GIB
        world.strangers[7] = (GPU, size)
        world.tick()
    world.ask(Verb.WAKE, "vllm")
    world.tick()
    assert "is critical" in world.view("vllm").reason


def test_killed_runners_are_within_the_bound() -> None:
    """An Ollama that never obeys: six dead runners in ten minutes, then manual intervention is required."""
    world = World(settings(), unload_ignored=True).up()
    world.strangers[7] = (GPU, ROOM - world.used(GPU) - 100 * MIB)
    ollama, number = world.engines["ollama"], 0
    for _ in range(2300):
        world.tick()
        if not ollama.loaded and band(world) is not Pressure.CRITICAL:
            number += 1
            ollama.loaded, ollama.held = (f"model{number}",), 2 * GIB
    assert actions(world, KillProcesses) == DISRUPTIVE_MAX
    assert detail(world).disruptive <= DISRUPTIVE_MAX


def test_the_incident_of_who_is_dropped_while_he_rests_is_closed() -> None:
    """A backend that is forgotten leaves no open incident behind."""
    world = World(_with_a_mode_without_vllm()).up()
    world.die("vllm", Exit(code=1))
    world.until("vllm", Phase.BACKOFF)
    world.switch("B")
    world.tick(40)
    assert [one for one in world.state.incidents if one.closed_at is None] == []


def test_a_cap_learned_in_another_mode_is_for_the_next_start_only() -> None:
    """Kept running through a switch, an engine is no offender for what its new mode has learned."""
    whole = settings().modes["A"]
    world = World(settings({"A": whole, "N": replace(whole, name="N")})).up()
    cap = world.view("vllm").cap_bytes
    key = learn.key(replace(world.settings, mode="N"), world.observation(), "vllm", GPU)
    entry = LearnedCap("N", "vllm", GPU, "M", "", 2 * GIB, 2 * GIB, 1, world.now + 1e9, "full")
    world.state = replace(world.state, learned={key: entry})
    world.switch("N")
    world.tick(40)
    assert world.view("vllm").cap_bytes == cap
    assert world.stopped == []
    world.ask(Verb.RESTART, "vllm")
    world.until("vllm", Phase.STARTING)
    assert world.view("vllm").cap_bytes == cap - 2 * GIB


def test_a_drained_ollama_gives_its_idle_models_back_as_well() -> None:
    """An operator's drain ends its requests, not its duty."""
    world = World(settings()).up()
    world.ask(Verb.DRAIN, "ollama")
    world.tick(4)
    world.strangers[7] = (GPU, ROOM - world.used(GPU) - 100 * MIB)
    world.tick(8)
    assert world.unloads == ["qwen2.5:3b"]
    assert world.engines["ollama"].held == 0


def test_the_end_of_an_unload_is_heard_on_a_blind_card() -> None:
    """Its outcome comes once; without it the runner that stays would never be killed."""
    world = World(settings(), unload_ignored=True).up()
    world.strangers[7] = (GPU, ROOM - world.used(GPU) - 100 * MIB)
    while not world.unloads:
        world.tick()
    world.blind = "hung"
    world.tick(4)
    world.blind = ""
    world.tick(60)
    assert actions(world, KillProcesses) == 1


def test_a_short_device_is_not_calm_for_a_moment_after_it_was_blind() -> None:
    """One incident through it all."""
    world = World(settings()).up()
    world.engines["ollama"].held = 500 * MIB
    world.strangers[7] = (GPU, 3 * GIB)
    world.tick(16)
    assert band(world) is Pressure.TIGHT
    world.blind = "hung"
    world.tick(8)
    world.blind = ""
    for _ in range(16):
        world.tick()
        assert band(world) is not Pressure.CALM
    assert world.told(EventName.PRESSURE_RISE) == 1
