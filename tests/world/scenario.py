"""Scenarios as plain files: a configuration, what happens when, and what must have come of it."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from arbiterd.config import load
from arbiterd.errors import ArbiterError
from arbiterd.model.settings import Settings
from arbiterd.quantities import GIB, parse_duration, parse_size
from tests.world.engine import Nature
from tests.world.expect import Expect
from tests.world.policies import Ours
from tests.world.script import Script
from tests.world.world import Host, Policy, World

CONFIG = """\
mode = "A"
[backends]
tensorflow = { command = ["tensorflow_model_server"], models = { resnet50 = "/srv/models/resnet50" } }
vllm       = { command = ["vllm", "serve", "Qwen/Qwen2.5-3B-Instruct"] }
ollama     = { models = ["qwen2.5:3b"] }
[modes.A]
tensorflow = { gpu = 0, memory = "20%" }
vllm       = { gpu = 0, memory = "55%" }
ollama     = { gpu = 0, memory = "20%" }
"""
NATURES = {
    "tensorflow": Nature(start_s=3.0, service_s=0.2),
    "vllm": Nature(start_s=12.0, service_s=4.0),
    "ollama": Nature(start_s=2.0, service_s=4.0, models={"qwen2.5:3b": 2 * GIB + GIB // 2}),
}
SETTLE_S = 60.0  # every scenario first lets its backends come up, at most so long
_KEYS = {"title", "seed", "duration", "config", "host", "nature", "event", "expect", "settle"}


@dataclass(frozen=True, slots=True)
class Happening:
    """``at`` seconds after everything is up. ``what``: a verb of Script."""

    at: float
    what: str
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One file. ``settle`` False: events count from the start of the daemon, not from all ready."""

    name: str
    title: str
    settings: Settings
    duration_s: float
    events: tuple[Happening, ...] = ()
    expect: Expect = Expect()
    host: Host = field(default_factory=Host)
    natures: Mapping[str, Nature] = field(default_factory=lambda: NATURES)
    seed: int = 0
    settle: bool = True


def settings_of(text: str) -> Settings:
    """An accepted configuration.

    Raises:
        ConfigRefused: with every problem.

    """
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        file.write(text)
    try:
        made = load(Path(file.name), {}).settings
    finally:
        os.unlink(file.name)
    return replace(made, source=replace(made.source, path="scenario", loaded_at=0.0))


def read(path: Path) -> Scenario:
    """Read one file.

    Raises:
        ArbiterError: an unknown key or a wrong value; the message names it.

    """
    try:
        return _scenario(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except (ArbiterError, ValueError, KeyError, TypeError) as error:
        msg = f"{path.name}: {error}"
        raise ArbiterError(msg) from error


def _scenario(name: str, table: Mapping[str, Any]) -> Scenario:
    unknown = set(table) - _KEYS
    if unknown:
        msg = f"unknown key {min(unknown)!r}; there are {', '.join(sorted(_KEYS))}"
        raise ArbiterError(msg)
    natures = dict(NATURES)
    for kind, given in table.get("nature", {}).items():
        natures[kind] = _nature(natures.get(kind, Nature()), given)
    return Scenario(
        name=name,
        title=table["title"],
        settings=settings_of(table.get("config", CONFIG)),
        duration_s=parse_duration(table["duration"]),
        events=tuple(sorted((_event(one) for one in table.get("event", ())), key=lambda e: e.at)),
        expect=Expect.read(table.get("expect", {})),
        host=_host(table.get("host", {})),
        natures=natures,
        seed=int(table.get("seed", 0)),
        settle=bool(table.get("settle", True)),
    )


def _nature(old: Nature, given: Mapping[str, Any]) -> Nature:
    values: dict[str, Any] = {}
    known = {one.name for one in fields(Nature)}
    for key, value in given.items():
        if key not in known:
            msg = f"unknown nature {key!r}; there are {', '.join(sorted(known))}"
            raise ArbiterError(msg)
        if key == "models":
            values[key] = {name: parse_size(size) for name, size in value.items()}
        elif key.endswith("_s"):
            values[key] = parse_duration(value)
        else:
            values[key] = parse_size(value)
    return replace(old, **values)


def _event(given: Mapping[str, Any]) -> Happening:
    rest = {key: value for key, value in given.items() if key not in ("at", "what")}
    return Happening(parse_duration(given["at"]), given["what"], rest)


def _host(given: Mapping[str, Any]) -> Host:
    values = dict(given)
    if "profiles" in values:
        values["profiles"] = tuple(values["profiles"])
    if "slices" in values:
        values["slices"] = tuple(parse_size(one) for one in values["slices"])
    if "lag" in values:
        values["lag_s"] = parse_duration(values.pop("lag"))
    return Host(**values)


def build(scenario: Scenario, policy: Policy | None = None) -> World:
    """The world of a scenario, nothing started yet."""
    return World(
        scenario.settings,
        policy or Ours(),
        host=scenario.host,
        natures=scenario.natures,
        seed=scenario.seed,
    )


def play(
    scenario: Scenario, policy: Policy | None = None, each: Callable[[World], None] | None = None
) -> World:
    """Let it happen; returns the world as it is at the end. ``each`` is called after every tick.

    Raises:
        ArbiterError: an event is none, or not everything came up.

    """
    world = build(scenario, policy)
    if scenario.settle:
        _settle(world)
    began = world.monitor.began = world.now
    script = Script(world)
    world.first_event = began + (scenario.events[0].at if scenario.events else 0.0)
    for event in scenario.events:
        happen = partial(script.do, event.what, event.given)
        if event.what == "restart_daemon":  # the loop itself ends: not from within the physics
            world.between.append((began + event.at, happen))
        else:
            world.at(event.at, happen)
    end = began + scenario.duration_s
    while world.now < end - 1e-9:
        world.tick()
        if each is not None:
            each(world)
    return world


def _settle(world: World) -> None:
    limit = world.now + SETTLE_S + sum(one.start_s for one in world.natures.values())
    names = list(world.settings.active.backends)
    while world.now < limit:
        world.tick()
        views = world.decision.backends.values() if world.decision else ()
        serve = all(name in world.engines and world.engines[name].serving for name in names)
        if serve and all(view.accepting for view in views):
            world.run(2.5)
            return
    msg = f"not everything came up: {[(v.name, v.phase.value, v.reason) for v in views]}"
    raise ArbiterError(msg)
