"""Writes what a daemon of this version leaves behind, for the versions that follow.

Run it where the format of carry.json is new (store/handoff_formats.py), before the code that writes it changes:

    PYTHONPATH=. python tests/pins/upgrade/write_fixtures.py tests/pins/upgrade/format-2

0.2.0's were written by the first version of this file in a checkout of 2893546. A folder a case: carry.json,
incidents.json and learned.json as the stores write them, and host.json: the clock and the engines as they ran on.
"""
# mypy: ignore-errors

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from arbiterd.config import load
from arbiterd.core.backend.carry import pack
from arbiterd.linux import procfs
from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase
from arbiterd.model.launch import Exit
from arbiterd.quantities import GIB, MIB
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.learned_caps import LearnedStore
from tests.core.world import World

HERE = Path(__file__).parent
FULL = (
    "torch.OutOfMemoryError: CUDA out of memory. GPU 0 has 23.61 GiB of which 118.00 MiB is free."
)


def _world() -> World:
    settings = load(HERE / "gpu-arbiter.toml", {}).settings
    return World(replace(settings, source=replace(settings.source, loaded_at=0.0)), gpus=2).up()


def rest() -> World:
    """TensorFlow Serving is parked, vLLM asleep, Ollama drained, the server in back-off."""
    world = _world()
    world.ask(Verb.STOP_ALL)
    for name in ("tensorflow", "vllm", "ollama", "server"):
        world.until(name, Phase.STOPPED)
    for name in ("vllm", "ollama", "server"):
        world.ask(Verb.RESUME, name)
    for name in ("vllm", "ollama", "server"):
        world.until(name, Phase.READY)
    world.tick(8)
    world.ask(Verb.DRAIN, "ollama")
    world.ask(Verb.SLEEP, "vllm")
    world.until("vllm", Phase.SLEEPING)
    world.tick(40)
    world.crash_on_start["server"] = (Exit(code=1), "Traceback")
    world.die("server", Exit(code=1), "Traceback")
    for _ in range(3):
        world.until("server", Phase.STARTING)
        world.until("server", Phase.BACKOFF)
    world.tick(2)
    return world


def switch() -> World:
    """Mode A to B: the server has left, vLLM is being stopped, to start on the other card."""
    world = _world()
    world.switch("B")
    world.lag_s = 3.0
    world.until("vllm", Phase.STOPPING)
    world.tick()
    return world


def leaving() -> World:
    """Mode A to B: vLLM is drained for it, and still has a request."""
    world = _world()
    world.engines["vllm"].running = 1
    world.switch("B")
    world.until("vllm", Phase.DRAINING)
    world.tick()
    return world


def reclaim() -> World:
    """vLLM has run out of memory once; now Ollama's idle model is being unloaded under pressure."""
    world = _world()
    engine = world.engines["vllm"]
    engine.held = world.view("vllm").cap_bytes
    world.tick(2)
    world.die("vllm", Exit(code=1), FULL)
    engine.held = 0
    world.until("vllm", Phase.STARTING)
    world.until("vllm", Phase.READY)
    world.tick(8)
    world.unload_ignored = True
    world.strangers[7] = ("GPU-0", 24 * GIB - 400 * MIB - world.used("GPU-0") - 100 * MIB)
    while not world.unloads:
        world.tick()
    world.tick()
    return world


def main(out: Path) -> None:
    """Every case."""
    for case in (rest, switch, leaving, reclaim):
        folder = out / case.__name__
        folder.mkdir(parents=True, exist_ok=True)
        world = case()
        carry = CarryStore(folder)
        carry.save(pack(world.state))
        carry.close()
        for store, kept in (
            (IncidentStore(folder), world.decision.incidents),
            (LearnedStore(folder), world.decision.learned),
        ):
            store.save(kept)
            store.close()
        host = {
            "now": world.now,
            "boot_id": procfs.boot_id(),
            "mode": world.settings.mode,
            "engines": [asdict(one) for one in world.engines.values()],
            "strangers": world.strangers,
            "ghosts": world.ghosts,
        }
        (folder / "host.json").write_text(json.dumps(host))
        print(folder, {b.name: (b.phase.value, b.reason) for b in world.state.backends.values()})


main(Path(sys.argv[1]).resolve())
