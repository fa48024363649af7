"""Traces: what is written is what was seen, to the last field, and replays to the same decisions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from arbiterd.errors import ArbiterError
from arbiterd.model.actions import Outcome, SleepBackend, StopBackend, WakeBackend
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.events import EventName
from arbiterd.model.gateway import GatewayObservation
from arbiterd.model.reading import Known, Unknown
from arbiterd.secrets.redact import Redactor
from arbiterd.trace.codec import decode, difference, encode, patch
from arbiterd.trace.lines import Reader, Tick, Writer
from arbiterd.trace.replay import replay
from tests.world.policies import Ours
from tests.world.scenario import CONFIG, Scenario, play, read, settings_of
from tests.world.script import Script
from tests.world.world import World

SCENARIOS = Path(__file__).parents[1] / "core" / "scenarios"
SHORT = ("fast-leak", "orphan", "blind", "planned-load", "mig", "lost-card")


def through_json(value: object) -> Any:
    """As a file would keep it."""
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


class Recording(Ours):
    """Ours, with every tick written."""

    def __init__(self, redactor: Redactor | None = None) -> None:
        super().__init__()
        self.writer = Writer(redactor)
        self.lines: list[str] = []

    def decide(self, observation: Any, settings: Any) -> Any:
        """And note it."""
        before = self.state
        decision = super().decide(observation, settings)
        self.lines += self.writer.lines(Tick(observation, before, decision, settings))
        return decision


def recorded(scenario: Scenario) -> tuple[World, Recording]:
    """Play and record."""
    policy = Recording()
    return play(scenario, policy), policy


@pytest.mark.parametrize("name", SHORT)
def test_a_recorded_scenario_replays_to_the_same_decisions(name: str) -> None:
    """Every part of every decision, and every observation as it was."""
    scenario = replace(read(SCENARIOS / f"{name}.toml"), duration_s=70.0)
    world, policy = recorded(scenario)
    found = list(replay(Reader(policy.lines)))
    assert len(found) == world.ticks
    assert all(one.same for one in found)
    assert any(one.decision.actions for one in found)
    size = sum(len(line) for line in policy.lines[2:]) / len(found)
    assert size < 4000, f"{size:.0f} bytes a tick"


def test_another_configuration_decides_otherwise_and_it_shows() -> None:
    """The headroom of the whole card: everything waits for ever."""
    scenario = replace(read(SCENARIOS / "orphan.toml"), duration_s=20.0)
    _, policy = recorded(scenario)
    other = settings_of(CONFIG + '[arbiter]\nheadroom = "1GiB"\n')
    found = list(replay(Reader(policy.lines), other))
    assert any(not one.same for one in found)


def test_a_reload_is_in_the_trace() -> None:
    """Settings that change in the middle."""
    more = CONFIG + '[modes.B]\nvllm = { gpu = 0, memory = "60%" }\n'
    policy = Recording()
    world = World(settings_of(more), policy)
    world.run(10)
    Script(world).mode("B")
    world.run(10)
    found = list(replay(Reader(policy.lines)))
    assert all(one.same for one in found)
    assert set(found[-1].decision.backends) != set(found[0].decision.backends)


ACTION = st.sampled_from(
    [
        StopBackend("act-1", "vllm", "GPU-1", "why", 3.0),
        SleepBackend("act-2", "vllm", "GPU-1", "why", "http://x", ()),
        WakeBackend("act-2", "vllm", "GPU-1", "why", "http://x", ()),
    ]
)
FLOATS = st.floats(allow_nan=False).map(lambda one: one + 0.0)  # no -0.0: it equals 0.0
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    FLOATS,
    st.text(),
    st.sampled_from(EventName),
    st.sampled_from(GpuState),
    st.sampled_from(Pressure),
    st.frozensets(st.text(), max_size=1),
    st.builds(Outcome, ACTION, st.booleans(), FLOATS, FLOATS, st.text()),
    st.builds(Unknown, st.text(), FLOATS),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.sampled_from(("$", "~", "~k"))), inner, max_size=4),
        st.dictionaries(st.tuples(st.integers(), st.integers()), inner, max_size=3),
        st.builds(Known, inner, FLOATS),
    ),
    max_leaves=12,
)


def typed(value: object) -> object:
    """With the types of numbers, which equality does not see (1 == 1.0 == True)."""
    return repr(value)


@given(VALUES)
@profile(deadline=None)
def test_every_value_comes_back_as_it_was(value: object) -> None:
    """Kinds of numbers, infinity, keys that are no text, classes with the same fields, order."""
    assert typed(through_json(value)) == typed(value)


@given(VALUES, VALUES)
@profile(deadline=None)
def test_a_difference_leads_from_one_to_the_other(old: object, new: object) -> None:
    """Whatever lies between."""
    change = json.loads(json.dumps(difference(old, new), default=lambda _same: "same"))
    after = old if change == "same" and difference(old, new) != "same" else patch(old, change)
    assert typed(after) == typed(new)


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)), min_size=2))
@profile(max_examples=200, deadline=None)
def test_the_order_of_keys_survives(maps: list[dict[str, int]]) -> None:
    """Core walks over mappings: another order could be another decision."""
    here: Any = maps[0]
    for new in maps[1:]:
        change = difference(here, new)
        here = here if not isinstance(change, dict) else patch(here, json.loads(json.dumps(change)))
        assert list(here.items()) == list(new.items())


def test_a_list_has_no_business_in_a_decision() -> None:
    """It would come back as a tuple."""
    with pytest.raises(TypeError, match="a list cannot stand in a trace"):
        encode([1])


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "line 1: this is no line of a trace"),
        (["hello\n"], "line 1: this is no line of a trace"),
        (["{}\n"], "line 1: this is no trace"),
        (['{"trace":1}\n'], "line 1: the header has no"),
        (
            ['{"trace":1,"version":"9","recorded_at":0,"settings":{"$":"Moon"},"state":1}\n'],
            "recorded by version 9: it has a Moon",
        ),
    ],
)
def test_what_is_no_trace_is_told_in_a_sentence(lines: list[str], says: str) -> None:
    """Never a traceback."""
    with pytest.raises(ArbiterError, match=says):
        Reader(lines)


def test_a_trace_that_was_cut_ends_at_its_last_whole_line() -> None:
    """The daemon, or the disk, ended in the middle of a line."""
    _, policy = recorded(replace(read(SCENARIOS / "orphan.toml"), duration_s=5.0))
    whole = list(Reader(policy.lines).ticks())
    cut = [*policy.lines[:-1], policy.lines[-1][:-10]]
    assert len(list(Reader(cut).ticks())) == len(whole) - 1
    late = [*policy.lines, '{"error":"the reader was 240 ticks behind"}\n']
    with pytest.raises(ArbiterError, match="the recording ended: the reader was"):
        list(Reader(late).ticks())
    broken = [*policy.lines, '{"o":{"~":{"mood":3}}}\n']
    with pytest.raises(ArbiterError, match=f"line {len(policy.lines) + 1}, recorded by"):
        list(Reader(broken).ticks())


def test_observations_are_the_same_objects_where_nothing_changed() -> None:
    """A small trace, and a fast replay."""
    empty = GatewayObservation()
    assert difference(empty, empty) is difference((1,), (1,))


def test_a_trace_without_its_secrets_replays_to_the_same_decisions() -> None:
    """The values are in env and command; the digest of each backend was made with them."""
    keyed = CONFIG.replace(
        '"serve", "Qwen/Qwen2.5-3B-Instruct"]',
        '"serve", "Qwen/Qwen2.5-3B-Instruct", "--api-key", "planted-in-command"],\n'
        '  env = { HF_TOKEN = "planted-in-env" }',
    ).replace("\n  env", " env")
    scenario = replace(
        read(SCENARIOS / "fast-leak.toml"), settings=settings_of(keyed), duration_s=40.0
    )
    plain = Recording()
    play(scenario, plain)
    policy = Recording(Redactor(["planted-in-command", "planted-in-env"]))
    play(scenario, policy)
    for word in ("planted-in-command", "planted-in-env"):
        assert any(word in line for line in plain.lines)
        assert not any(word in line for line in policy.lines)
    found = list(replay(Reader(policy.lines)))
    assert any(one.decision.actions for one in found)
    assert all(one.same for one in found)
