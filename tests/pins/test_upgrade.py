"""What an earlier daemon left behind is taken up by this one: engines run on, and what was begun goes on.

The fixtures were written by the code of those days (upgrade/write_fixtures.py): by 0.2.0, and in each format
of carry.json since (store/handoff_formats.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arbiterd.config import load
from arbiterd.core.state import State
from arbiterd.linux import procfs
from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase
from arbiterd.model.gateway import Traffic
from arbiterd.model.settings import Settings
from arbiterd.model.switch import Change, Ended
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.learned_caps import LearnedStore
from tests.core.world import Engine, World

FOLDER = Path(__file__).parent / "upgrade"
OLD = [FOLDER / name for name in ("0.2.0", "format-1", "format-2", "format-3")]
STORES = ("carry.json", "incidents.json", "learned.json")
Taken = Callable[..., World]


def of_mode(mode: str) -> Settings:
    """The configuration of the fixtures."""
    made = load(FOLDER / "gpu-arbiter.toml", {}).settings
    arbiter = replace(made.arbiter, local_users="trusted")
    return replace(made, mode=mode, arbiter=arbiter, source=replace(made.source, loaded_at=0.0))


def copied(old: Path, case: str, folder: Path) -> dict[str, Any]:
    """The files of a case, of this boot; what host.json says."""
    host: dict[str, Any] = json.loads((old / case / "host.json").read_text())
    for name in STORES:
        if (old / case / name).exists():
            text = (old / case / name).read_text().replace(host["boot_id"], procfs.boot_id())
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
    return host


@pytest.fixture(params=OLD, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest) -> Path:
    """What a daemon of another day left."""
    found: Path = request.param
    return found


@pytest.fixture
def taken(tmp_path: Path, old: Path) -> Taken:
    """The host of a case, with today's daemon on it, two ticks later. ``problems`` are what the stores said."""

    def take(case: str, mode: str = "") -> World:
        host = copied(old, case, tmp_path)
        carry, incidents = CarryStore(tmp_path), IncidentStore(tmp_path)
        learned = LearnedStore(tmp_path)
        state = State(
            run="u",
            carried=carry.load(),
            incidents=incidents.load(),
            learned=learned.load(),
            good=of_mode("A"),
        )
        assert [*carry.problems, *incidents.problems, *learned.problems] == []
        assert state.carried is not None
        assert state.incidents or case in ("switch", "leaving")
        made: list[dict[str, Any]] = [
            {key: tuple(v) if isinstance(v, list) else v for key, v in one.items()}
            for one in host["engines"]
        ]
        engines = [Engine(**one) for one in made]
        world = World(
            of_mode(mode or host["mode"]),
            gpus=2,
            now=host["now"] + 1.0,
            state=state,
            engines={one.name: one for one in engines},
            strangers={int(pid): (card, size) for pid, (card, size) in host["strangers"].items()},
            next_pid=900,
            traffic={one.name: Traffic(in_flight=one.running, engine_up=True) for one in engines},
        )
        world.tick(2)
        return world

    return take


# -- at rest -------------------------------------------------------------------------------------------
def test_everybody_stays_where_an_operator_or_a_failure_has_put_them(taken: Taken) -> None:
    """Parked, asleep, drained and in back-off: nothing is started, nothing is stopped, nothing is woken."""
    world = taken("rest")
    world.tick(20)
    assert world.phase("tensorflow") is Phase.STOPPED
    assert world.phase("vllm") is Phase.SLEEPING
    assert world.phase("ollama") is Phase.DRAINING
    assert world.phase("server") is Phase.BACKOFF
    assert world.ordered == []
    assert not any(
        world.view(name).accepting for name in ("tensorflow", "vllm", "ollama", "server")
    )


def test_a_parked_one_starts_when_it_is_resumed_and_not_before(taken: Taken) -> None:
    """However long the daemon runs."""
    world = taken("rest")
    world.tick(400)
    assert world.phase("tensorflow") is Phase.STOPPED
    world.ask(Verb.RESUME, "tensorflow")
    world.until("tensorflow", Phase.READY)


def test_a_drained_one_goes_on_when_it_is_resumed_without_a_restart(taken: Taken) -> None:
    """Its engine ran all the time."""
    world = taken("rest")
    pid = world.engines["ollama"].pid
    world.tick(200)
    assert world.phase("ollama") is Phase.DRAINING
    world.ask(Verb.RESUME, "ollama")
    world.until("ollama", Phase.READY)
    assert world.engines["ollama"].pid == pid


def test_a_sleeping_one_wakes_when_it_is_asked_to(taken: Taken) -> None:
    """With what it held before."""
    world = taken("rest")
    engine = world.engines["vllm"]
    world.tick(200)
    assert world.phase("vllm") is Phase.SLEEPING
    world.ask(Verb.WAKE, "vllm")
    world.until("vllm", Phase.READY)
    assert world.engines["vllm"] is engine
    assert engine.held == engine.awake


def test_a_back_off_ends_at_the_time_that_was_set(taken: Taken, old: Path) -> None:
    """Not earlier, and with the failures counted so far."""
    kept = json.loads((old / "rest" / "carry.json").read_text())["carry"]["backends"]["server"]
    world = taken("rest")
    assert world.now < kept["not_before"]
    while world.phase("server") is Phase.BACKOFF:
        assert world.now < kept["not_before"] + 1.0
        world.tick()
    assert world.now >= kept["not_before"]
    assert world.state.backends["server"].history.count == kept["failed_count"] == 4


# -- a switch ------------------------------------------------------------------------------------------
def test_a_switch_goes_on_to_its_end(taken: Taken) -> None:
    """Who is kept is not touched, who moves starts on the other card, and the result is recorded."""
    world = taken("switch")
    kept = {name: world.engines[name].pid for name in ("tensorflow", "ollama")}
    assert world.decision is not None
    assert world.decision.switch is not None
    steps = {step.backend: step.change for step in world.decision.switch.steps}
    assert steps == {
        "tensorflow": Change.KEEP, "ollama": Change.KEEP, "vllm": Change.RESTART, "server": Change.STOP,
    }  # fmt: skip
    world.until("vllm", Phase.READY)
    world.tick(20)
    assert world.decision.switch is None
    assert world.decision.last_switch is not None
    assert world.decision.last_switch.outcome is Ended.IN_FORCE
    assert {name: world.engines[name].pid for name in kept} == kept
    assert world.view("vllm").devices == ("GPU-1",)
    assert "server" not in world.engines


@pytest.mark.parametrize("mode", ["B", "A"])
def test_a_drain_for_a_new_layout_goes_on_or_is_taken_back(taken: Taken, mode: str) -> None:
    """In B it ends with a restart; where the layout before is back by then, the engine just goes on."""
    world = taken("leaving", "B")
    engine = world.engines["vllm"]
    assert world.phase("vllm") is Phase.DRAINING
    world.switch(mode)
    world.tick(4)
    engine.running, world.traffic["vllm"] = 0, Traffic(engine_up=True)
    world.until("vllm", Phase.READY)
    assert (world.engines["vllm"] is engine) is (mode == "A")


# -- a reclaim -----------------------------------------------------------------------------------------
def test_a_reclaim_goes_on_and_its_bytes_are_still_awaited(taken: Taken) -> None:
    """The unload is not asked for again; nobody else is chosen while it is under way."""
    world = taken("reclaim")
    reclaim = world.state.devices["GPU-0"].ladder.reclaim
    assert reclaim is not None
    assert (reclaim.rung.value, reclaim.backend, reclaim.model) == ("trim", "ollama", "qwen2.5:3b")
    assert world.unloads == []
    world.engines["ollama"].loaded, world.engines["ollama"].held = (), 0
    del world.strangers[7]
    for _ in range(40):
        world.tick()
        if world.state.devices["GPU-0"].ladder.reclaim is None:
            break
    assert world.state.devices["GPU-0"].ladder.reclaim is None
    assert world.stopped == []


def test_what_an_oom_has_taught_is_kept(taken: Taken, old: Path) -> None:
    """The cap of the next start stays down."""
    world = taken("reclaim")
    (entry,) = json.loads((old / "reclaim" / "learned.json").read_text())
    assert entry["backend"] == "vllm"
    assert world.view("vllm").learned_bytes == entry["lowered_bytes"] > 0


def test_open_incidents_go_on_under_their_ids(taken: Taken, old: Path) -> None:
    """None is opened twice."""
    rows = json.loads((old / "reclaim" / "incidents.json").read_text())
    open_then = {row["id"] for row in rows if row["closed_at"] is None}
    world = taken("reclaim")
    assert world.decision is not None
    open_now = {one.id for one in world.decision.incidents if one.closed_at is None}
    assert open_then
    assert open_then == open_now


# -- keys that this version does not know --------------------------------------------------------------
@pytest.mark.parametrize(
    ("where", "path"),
    [
        (("carry", "backends", "tensorflow"), "backends.tensorflow.put_by_hand"),
        (("carry", "backends", "vllm", "sleep"), "backends.vllm.sleep.put_by_hand"),
        (("carry", "devices", "GPU-0"), "devices.GPU-0.put_by_hand"),
    ],
)
def test_an_unknown_key_is_said_and_the_rest_is_taken(
    tmp_path: Path, old: Path, where: tuple[str, ...], path: str
) -> None:
    """A newer or older version's word: dropped in silence, a parked engine would just start."""
    copied(old, "rest", tmp_path)
    whole = json.loads((tmp_path / "carry.json").read_text())
    row = whole
    for key in where:
        row = row[key]
    row["put_by_hand"] = True
    (tmp_path / "carry.json").write_text(json.dumps(whole))
    store = CarryStore(tmp_path)
    carry = store.load()
    assert carry is not None
    assert carry.backends["tensorflow"].wish.parked
    assert len(store.problems) == 1
    assert store.problems[0].endswith(f"written by another version; left out: {path}")


def test_an_unknown_key_of_an_incident_is_said(tmp_path: Path, old: Path) -> None:
    """And the incident is kept."""
    copied(old, "rest", tmp_path)
    rows = json.loads((tmp_path / "incidents.json").read_text())
    rows[0]["mood"] = 3
    (tmp_path / "incidents.json").write_text(json.dumps(rows))
    store = IncidentStore(tmp_path)
    assert len(store.load()) == len(rows)
    assert [text.rpartition(": ")[2] for text in store.problems] == ["mood"]
