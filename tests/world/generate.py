"""Random worlds and overloads, each from one source of randomness: the same seed, the same world.

``world`` is for invariants: anything may happen. ``overload`` is for comparing policies: somebody takes
more than was granted while clients are served. ``healthy`` keeps within every cap.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from arbiterd.model.settings import Settings
from arbiterd.quantities import GIB, MIB
from tests.world.engine import Nature
from tests.world.scenario import NATURES, Happening, Scenario, settings_of
from tests.world.world import Host

_LINES = {
    "tensorflow": 'command = ["tensorflow_model_server"], models = {{ resnet50 = "/srv/m" }}{more}',
    "vllm": 'command = ["vllm", "serve", "Qwen/Qwen2.5-3B-Instruct"]{more}',
    "ollama": 'models = ["qwen2.5:3b", "llama3.2:1b", "phi4:mini"]{more}',
    "server": 'kind = "generic", command = ["server"], port = 9000, health = "/health"{more}',
}
MODELS = {"qwen2.5:3b": 2500 * MIB, "llama3.2:1b": 1500 * MIB, "phi4:mini": 3 * GIB}


@dataclass(frozen=True, slots=True)
class Layout:
    """Backends with their shares of one card, and the options that matter to the ladder."""

    shares: tuple[tuple[str, int], ...]
    sleep: bool = False
    growth: bool = False
    loaded: int = 1
    profile: str = "rtx4090-24g"

    @property
    def names(self) -> tuple[str, ...]:
        """Of its backends."""
        return tuple(name for name, _ in self.shares)


LAYOUTS = (
    Layout((("tensorflow", 20), ("vllm", 55), ("ollama", 20))),
    Layout((("tensorflow", 20), ("vllm", 55), ("ollama", 20)), sleep=True, loaded=2),
    Layout((("tensorflow", 25), ("vllm", 40), ("ollama", 25)), growth=True, loaded=2),
    Layout((("vllm", 60), ("ollama", 30)), loaded=2),
    Layout((("vllm", 60), ("ollama", 30)), sleep=True),
    Layout((("tensorflow", 30), ("vllm", 60))),
    Layout((("tensorflow", 15), ("vllm", 50), ("ollama", 15), ("server", 12))),
    Layout((("vllm", 45), ("ollama", 20), ("server", 20)), profile="a100-40g", loaded=2),
)


@lru_cache(maxsize=64)
def settings(layout: Layout) -> Settings:
    """Its configuration."""
    more = {
        "vllm": ", sleep = true" if layout.sleep else "",
        "tensorflow": ", memory_growth = true" if layout.growth else "",
        "ollama": f", max_loaded_models = {layout.loaded}" if layout.loaded > 1 else "",
    }
    rows = [f"{n} = {{ {_LINES[n].format(more=more.get(n, ''))} }}" for n in layout.names]
    caps = [f'{name} = {{ gpu = 0, memory = "{share}%" }}' for name, share in layout.shares]
    return settings_of("\n".join(['mode = "A"', "[backends]", *rows, "[modes.A]", *caps]) + "\n")


def natures(rng: random.Random) -> dict[str, Nature]:
    """Installations that differ from world to world."""
    made = {}
    for name, base in {**NATURES, "server": Nature(weights=int(1.5 * GIB))}.items():
        made[name] = replace(
            base,
            start_s=base.start_s * rng.uniform(0.5, 1.5),
            spike=rng.choice((0, 48, 96, 160)) * MIB,
            spike_every_s=rng.uniform(2.0, 9.0),
            stop_s=rng.uniform(0.1, 3.0),
            unload_s=rng.uniform(0.3, 3.0),
            sleep_s=rng.uniform(1.0, 5.0),
            service_s=rng.uniform(0.2, 6.0),
            models=MODELS,
        )
    return made


def _event(at: float, what: str, **given: Any) -> Happening:
    return Happening(round(at, 3), what, given)


def _mib(size: float) -> str:
    return f"{max(1, round(size))}MiB"


def _s(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _rate(rng: random.Random, low: float, high: float) -> float:
    """Log-uniform: as many slow leaks as fast ones."""
    return float(low * (high / low) ** rng.random())


def _traffic(rng: random.Random, names: Sequence[str], *, most: int = 8) -> list[Happening]:
    return [_event(0.5, "load", backend=n, in_flight=rng.randint(0, most)) for n in names]


# -- anything may happen -------------------------------------------------------------------------------
def world(rng: random.Random, *, events: int = 8, span_s: float = 60.0) -> Scenario:
    """A random world: leaks, strangers, faults, blindness, operators, restarts of the daemon."""
    layout = rng.choice(LAYOUTS)
    happen = _traffic(rng, layout.names)
    for number in range(rng.randint(1, events)):
        happen.append(_anything(rng, layout, rng.uniform(1.0, span_s), number))
    return Scenario(
        name="random",
        title="a random world",
        settings=settings(layout),
        duration_s=span_s,
        events=tuple(sorted(happen, key=lambda one: one.at)),
        host=Host(
            (layout.profile,),
            lag_s=rng.choice((0.05, 0.3, 1.0, 6.0)),
            can_freeze=rng.random() < 0.7,
        ),
        natures=natures(rng),
        seed=rng.randrange(1 << 30),
    )


def _anything(rng: random.Random, layout: Layout, at: float, number: int) -> Happening:
    name = rng.choice(layout.names)
    stranger = f"job{number}"
    verb = rng.choice(("drain", "resume", "restart"))
    fault = rng.choice(("ignores_unload", "ignores_term", "sleep_fails", "hung", "sick"))
    model = rng.choice(tuple(MODELS))
    made = (
        lambda: _event(at, "leak", backend=name, rate=_mib(_rate(rng, 2, 3000)), by_load=rng.random() < 0.4),
        lambda: _event(
            at, "leak", backend=name, rate=_mib(_rate(rng, 10, 800)), total=_mib(_rate(rng, 100, 6000)),
            chunk=rng.choice(("2MiB", "64MiB", "512MiB")),
        ),
        lambda: _event(at, "leak", backend=name, rate=_mib(_rate(rng, 20, 200))),
        lambda: _event(
            at, "sawtooth", backend=name, size=_mib(_rate(rng, 100, 3000)), every=_s(rng.uniform(2, 12)), times=8
        ),
        lambda: _event(at, "spike", backend=name, size=_mib(_rate(rng, 50, 4000)), last=_s(rng.uniform(0.1, 5))),
        lambda: _event(
            at, "stranger", name=stranger, size=_mib(_rate(rng, 100, 9000)),
            over=_s(rng.uniform(0.1, 30)) if rng.random() < 0.6 else "", last=_s(rng.uniform(2, 60)),
        ),
        lambda: _event(
            at, "flap", name=stranger, size=_mib(_rate(rng, 300, 4000)), on=_s(rng.uniform(0.5, 5)),
            off=_s(rng.uniform(0.5, 5)), times=6,
        ),
        lambda: _event(at, "die", backend=name, code=rng.choice((0, 1, 137)), words="boom", orphans=rng.random() < 0.3),
        lambda: _event(at, "kill_child", backend=name),
        lambda: _event(at, "fault", backend=name, name=fault),
        lambda: _event(at, "slow_release", backend=name, last=_s(rng.uniform(1, 30))),
        lambda: _event(at, "blind", last=_s(rng.uniform(0.5, 20))),
        lambda: _event(at, "stale", last=_s(rng.uniform(0.5, 10))),
        lambda: _event(at, "glitch", free=_mib(rng.uniform(1, 3000))),
        lambda: _event(at, "ask", verb=verb, backend=name),
        lambda: _event(at, "restart_daemon", away=_s(rng.uniform(0.2, 10))),
        lambda: _event(at, "crash_start", backend=name, times=rng.randint(1, 3), words="Traceback"),
    )  # fmt: skip
    if "ollama" in layout.names and rng.random() < 0.15:
        return _event(at, "want", backend="ollama", model=model)
    return rng.choice(made)()


# -- overloads -----------------------------------------------------------------------------------------
def overload(seed: int, *, span_s: float = 90.0) -> Scenario:
    """Somebody takes more than was granted, while everybody is asked for work."""
    rng = random.Random(f"overload {seed}")
    layout = rng.choice(LAYOUTS)
    happen = [_event(0.5, "load", backend=n, in_flight=rng.randint(1, 8)) for n in layout.names]
    at, kind = rng.uniform(4.0, 10.0), rng.choice(KINDS)
    guilty = rng.choice(layout.names)
    rate = _mib(_rate(rng, 45, 800))
    if kind == "leak":
        happen.append(_event(at, "leak", backend=guilty, rate=rate))
    elif kind == "load":
        happen.append(_event(at, "leak", backend=guilty, rate=rate, by_load=True))
    elif kind == "steps":
        chunk = rng.choice(("64MiB", "128MiB", "256MiB"))
        happen.append(_event(at, "leak", backend=guilty, rate=rate, chunk=chunk))
    elif kind == "pair":
        other = rng.choice(layout.names)
        happen.append(_event(at, "leak", backend=guilty, rate=rate))
        happen.append(
            _event(at + rng.uniform(0, 5), "leak", backend=other, rate=_mib(_rate(rng, 15, 400)))
        )
    elif kind == "foreign":
        size = _mib(rng.uniform(800, 3500))
        happen.append(
            _event(at, "stranger", name="job", size=size, over=_s(rng.uniform(1, 20)), last="40s")
        )
        happen.append(_event(at + 2, "leak", backend=guilty, rate=rate))
    elif kind == "sawtooth":
        happen.append(
            _event(at, "sawtooth", backend=guilty, size=_mib(rng.uniform(3000, 9000)), every=_s(rng.uniform(6, 20)), times=5)
        )  # fmt: skip
    else:
        happen.append(
            _event(at, "leak", backend=guilty, rate=rate, total=_mib(rng.uniform(2000, 8000)))
        )
    return Scenario(
        name=f"{kind}-{seed}",
        title=f"{kind} by {guilty}",
        settings=settings(layout),
        duration_s=span_s,
        events=tuple(sorted(happen, key=lambda one: one.at)),
        host=Host((layout.profile,), lag_s=rng.choice((0.2, 0.4, 0.8))),
        natures=natures(rng),
        seed=seed,
    )


KINDS = ("leak", "load", "steps", "pair", "foreign", "sawtooth", "bounded")
