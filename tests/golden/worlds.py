"""Hosts whose documents together show every part that a document may have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from arbiterd.model.gateway import BUCKETS_S, Requests, Traffic
from arbiterd.model.launch import Exit
from arbiterd.model.published import Published
from arbiterd.model.settings import Degrade, Failover, Mode, Settings
from arbiterd.quantities import GIB, MIB
from tests.core.world import OLLAMA, TF, VLLM, World, settings, share
from tests.web.site import published

FULL = (
    "torch.OutOfMemoryError: CUDA out of memory. GPU 0 has 23.61 GiB of which 118.00 MiB is free."
)


def _settings() -> Settings:
    """A: all on one card. B: vLLM on the second, TensorFlow Serving nowhere."""
    shares = {n: share(n, p) for n, p in (("tensorflow", 0.2), ("vllm", 0.5), ("ollama", 0.2))}
    moved = {"vllm": share("vllm", 0.55, gpu=1), "ollama": share("ollama", 0.2)}
    given = settings(
        {
            "A": Mode("A", shares, {"tensorflow": TF, "vllm": VLLM, "ollama": OLLAMA}),
            "B": Mode("B", moved, {"vllm": VLLM, "ollama": OLLAMA}),
        }
    )
    return replace(
        given,
        failover=(Failover("M", "vllm", "ollama", "qwen2.5:3b"),),
        degrade=(Degrade("tensorflow", "llm-only", ("vllm", "ollama")),),
    )


def _up() -> World:
    world = World(_settings(), gpus=2).up()
    counts = tuple(range(1, len(BUCKETS_S) + 2))
    for name in world.engines:
        world.traffic[name] = Traffic(0, 0, 8, 90, {"2": 80, "5": 1}, 5000, 1, 12.0, engine_up=True)
        world.codes[name] = Requests({"200": 80}, {"shed": 1}, counts, 3.0, counts, 1.0)
    world.tick(2)
    return world


def _fill(world: World, left: int) -> None:
    world.strangers[7] = ("GPU-0", 24 * GIB - 400 * MIB - world.used("GPU-0") - left)


def _trouble() -> Iterator[World]:
    """An OOM that lowers a cap, a leak, a card that fills up, a reclaim under way; then it is over."""
    world = _up()
    engine = world.engines["vllm"]
    engine.held = world.view("vllm").cap_bytes
    world.tick(2)
    world.die("vllm", Exit(code=1), FULL)
    engine.held = 0
    world.tick()
    yield world
    world.tick(100)
    world.unload_ignored = True
    _fill(world, 100 * MIB)
    world.tick(3)
    yield world
    world.engines["vllm"].held += 90 * MIB
    world.tick()
    world.tick(100)
    yield world


def _switches() -> Iterator[World]:
    """Under way, failed and going back, over."""
    world = _up()
    world.fail_starts = {"vllm": "no such program"}
    world.switch("B")
    world.tick(3)
    yield world
    for _ in range(400):
        world.tick()
        assert world.decision is not None
        if world.decision.back_to is not None:
            break
    world.settings, world.fail_starts = _back(world), {}
    world.tick(2)
    yield world
    world.tick(80)
    yield world


def _back(world: World) -> Settings:
    assert world.decision is not None
    assert world.decision.back_to is not None
    return world.decision.back_to


def _blind() -> World:
    world = _up()
    world.lost = {1}
    world.blind = "hung for 5.0 s"
    world.tick(4)
    return world


@cache
def worlds() -> tuple[Published, ...]:
    """Their published states."""
    made = [published(_up()), published(_blind())]
    made += [published(world) for world in _trouble()]
    made += [published(world) for world in _switches()]
    return tuple(made)
