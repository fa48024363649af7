"""A start or load that makes no progress for a minute holds up nobody; its bytes stay booked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from arbiterd.core.limits import HUNG_AFTER_S
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.launch import Exit, UnitObservation
from arbiterd.model.settings import Mode
from arbiterd.quantities import GIB, MIB
from tests.core.world import OLLAMA, TF, TICK_S, VLLM, World, settings, share

SLOW = replace(VLLM, start_timeout_s=1200.0)
Sign = Callable[[UnitObservation, float], UnitObservation]


class Watched(World):
    """A world whose vLLM shows ``sign``: what it has used by a moment."""

    sign: Sign = staticmethod(lambda unit, now: unit)

    def _units(self) -> dict[str, UnitObservation]:
        found = super()._units()
        return found | {n: self.sign(u, self.now) for n, u in found.items() if n == "vllm"}


def stuck_start(sign: Sign | None = None, **more: float) -> World:
    """vLLM starts and never answers; TensorFlow has crashed meanwhile and waits."""
    shares = {n: share(n, p) for n, p in (("tensorflow", 0.2), ("vllm", 0.55))}
    mode = Mode("A", shares, {"tensorflow": TF, "vllm": replace(SLOW, **more)})  # type: ignore[arg-type]
    world = Watched(settings({"A": mode})).up()
    if sign is not None:
        world.sign = sign  # type: ignore[attr-defined]
    world.start_s = 1e6
    world.die("vllm", Exit(code=1))
    world.until("vllm", Phase.STARTING)
    world.start_s = 1.0
    world.die("tensorflow", Exit(code=1))
    world.until("tensorflow", Phase.WAITING)
    return world


def seconds(world: World, count: float) -> None:
    """Let so many seconds pass."""
    world.tick(round(count / TICK_S))


def test_a_start_without_progress_holds_its_neighbour_for_a_minute_only() -> None:
    """Told once, shown as the reason; the hung start itself goes on."""
    world = stuck_start()
    seconds(world, HUNG_AFTER_S / 2)
    assert world.phase("tensorflow") is Phase.WAITING
    assert world.view("tensorflow").reason == "vllm is starting on GPU 0"
    seconds(world, HUNG_AFTER_S / 2 + 20)
    assert world.phase("tensorflow") is Phase.READY
    assert world.phase("vllm") is Phase.STARTING
    assert "hung: no output, CPU time, I/O or new memory" in world.view("vllm").reason
    assert world.told(EventName.STUCK, "vllm") == 1


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(lambda u, t: replace(u, cpu_s=0.25 * t), id="compiles on a quarter of a CPU"),
        pytest.param(lambda u, t: replace(u, log_bytes=int(t / 30)), id="says something each 30 s"),
        pytest.param(lambda u, t: replace(u, io_bytes=int(t) * 8192), id="downloads 8 KiB/s"),
        pytest.param(lambda u, t: replace(u, memory_bytes=int(t) * MIB // 20), id="fills slowly"),
    ],
)
def test_any_sign_of_progress_holds_the_neighbour(sign: Sign) -> None:
    """CPU, output, I/O or memory, each alone: a start that moves is awaited."""
    world = stuck_start(sign)
    seconds(world, 4 * HUNG_AFTER_S)
    assert world.phase("tensorflow") is Phase.WAITING
    assert world.told(EventName.STUCK) == 0


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(lambda u, t: replace(u, cpu_s=0.1 * t), id="polls"),
        pytest.param(lambda u, t: replace(u, io_bytes=int(t) * 100), id="beats"),
        pytest.param(lambda u, t: replace(u, memory_bytes=int(t) % 2 * GIB), id="to and fro"),
        pytest.param(lambda u, t: replace(u, cpu_s=5.0, frozen=True), id="stopped"),
    ],
)
def test_what_an_idle_process_does_is_no_progress(sign: Sign) -> None:
    """Polling, heart-beats, memory that comes and goes; a stopped process does nothing at all."""
    world = stuck_start(sign)
    seconds(world, HUNG_AFTER_S + 20)
    assert world.phase("tensorflow") is Phase.READY


def test_device_memory_is_progress() -> None:
    """Weights that arrive on the card."""
    world = stuck_start()
    for _ in range(round(2 * HUNG_AFTER_S)):
        world.engines["vllm"].held += 4 * MIB
        seconds(world, 1)
    assert world.phase("tensorflow") is Phase.WAITING


def test_a_hung_start_keeps_its_bytes_booked() -> None:
    """The neighbour fits into what is free, but not beside what the hung start may still take."""
    world = stuck_start()
    world.engines["vllm"].held = 0
    world.strangers[7] = ("GPU-0", 6 * GIB)
    seconds(world, HUNG_AFTER_S + 5)
    assert world.phase("tensorflow") is Phase.WAITING
    assert "booked beside vllm, which hangs" in world.view("tensorflow").reason
    del world.strangers[7]
    seconds(world, 20)
    assert world.phase("tensorflow") is Phase.READY


def test_a_hung_start_ends_by_its_own_start_timeout() -> None:
    """No sooner and no later for being hung."""
    world = stuck_start(start_timeout_s=120.0)
    seconds(world, 110)
    assert world.phase("vllm") is Phase.STARTING
    seconds(world, 15)
    assert world.phase("vllm") is not Phase.STARTING
    assert world.told(EventName.EXIT, "vllm") == 2


def test_a_start_that_goes_on_is_waited_for_again() -> None:
    """And told as such."""
    world = stuck_start()
    world.fail_starts["tensorflow"] = "not now"  # so that it still waits when vLLM goes on
    seconds(world, HUNG_AFTER_S + 5)
    began = world.now
    world.sign = lambda u, t: replace(u, cpu_s=t - began)  # type: ignore[attr-defined]
    seconds(world, 2)
    assert "hung" not in world.view("vllm").reason
    assert world.told(EventName.RECOVERED, "vllm") == 1


def test_time_in_which_the_daemon_was_stopped_is_no_evidence() -> None:
    """A minute passes between two ticks: nobody looked, so nobody hangs."""
    world = stuck_start()
    world.tick(1, dt=2 * HUNG_AFTER_S)
    world.tick(8)
    assert world.told(EventName.STUCK) == 0
    assert world.phase("tensorflow") is Phase.WAITING


def test_a_load_without_progress_holds_nobody_either() -> None:
    """Ollama's runner stands still while it loads the warm model."""
    shares = {n: share(n, p) for n, p in (("tensorflow", 0.2), ("ollama", 0.2))}
    slow = replace(OLLAMA, start_timeout_s=1200.0)
    world = World(settings({"A": Mode("A", shares, {"tensorflow": TF, "ollama": slow})}))
    world.load_hangs = True
    world.until("ollama", Phase.READY)
    world.tick(8)
    world.die("tensorflow", Exit(code=1))
    seconds(world, 30)
    assert world.view("tensorflow").reason == "ollama is loading a model on GPU 0"
    seconds(world, 55)
    assert world.phase("tensorflow") is Phase.READY
    assert world.told(EventName.STUCK, "ollama") == 1
