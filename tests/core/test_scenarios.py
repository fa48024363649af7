"""Scenarios as plain files: what happens in a closed-loop world, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.errors import ArbiterError
from tests.world.scenario import play, read
from tests.world.world import World

FOLDER = Path(__file__).parent / "scenarios"
FILES = sorted(FOLDER.glob("*.toml"))


def story(world: World) -> str:
    """What was told, for a failure's message."""
    began = world.monitor.began
    rows = [f"{at - began:8.2f} {e.name.value:16} {e.message}" for at, e in world.monitor.events]
    return "\n".join(rows[-60:])


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_scenario(path: Path) -> None:
    """Every expectation of the file holds, and every rule of the monitor."""
    scenario = read(path)
    world = play(scenario)
    problems = scenario.expect.problems(world)
    assert not problems, "\n".join([scenario.title, *problems, story(world)])


def test_there_are_the_scenarios_that_were_asked_for() -> None:
    """At least twenty, each with a title of its own."""
    titles = {read(path).title for path in FILES}
    assert len(titles) == len(FILES) >= 20


def test_the_same_file_gives_the_same_world_twice() -> None:
    """Deterministic: every event at the same moment, every byte."""
    scenario = read(FOLDER / "fast-leak.toml")
    first, second = play(scenario), play(scenario)
    assert list(first.monitor.events) == list(second.monitor.events)
    assert [c.used for c in first.cards.values()] == [c.used for c in second.cards.values()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('title = "x"\nduration = "1"\n', "no duration"),
        ('title = "x"\nduration = "1s"\nspeed = 3\n', "unknown key 'speed'"),
        ('title = "x"\nduration = "1s"\n[expect]\nhappy = 1\n', "unknown expectation 'happy'"),
        ('title = "x"\nduration = "1s"\n[nature.vllm]\nmood = "1s"\n', "unknown nature 'mood'"),
        ('title = "x"\nduration = "1s"\nconfig = "mode = 3"\n', "mode"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    """Errors are part of the interface."""
    path = tmp_path / "one.toml"
    path.write_text(text)
    with pytest.raises(ArbiterError, match=says):
        read(path)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ('what = "dance"', "there is no event 'dance'"),
        ('what = "leak"\nbackend = "vllm"', "missing a required argument"),
        ('what = "fault"\nbackend = "vllm"\nname = "lazy"', "there is no fault 'lazy'"),
    ],
)
def test_a_wrong_event_says_what_is_wrong(tmp_path: Path, event: str, says: str) -> None:
    """When it is due."""
    path = tmp_path / "one.toml"
    path.write_text(f'title = "x"\nduration = "2s"\n[[event]]\nat = "1s"\n{event}\n')
    with pytest.raises(ArbiterError, match=says):
        play(read(path))
