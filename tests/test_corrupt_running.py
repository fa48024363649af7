"""What the daemon before left of running engines: each field of it with each type stops no start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from arbiterd.act.launch import records
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.direct_record import Record
from arbiterd.act.launch.systemd_unit import Record as UnitRecord
from arbiterd.core.backend.carry import pack
from arbiterd.core.state import State
from arbiterd.daemon import startup
from arbiterd.linux import container_ids, procfs
from arbiterd.model.actions import Verb
from arbiterd.store.handoff import CarryStore
from arbiterd.store.handoff_formats import FORMAT
from arbiterd.trace.codec import encode
from tests.core.world import World, only
from tests.test_corrupt import RAW, WRONG

BACKEND = Record("vllm", 4194000, 7, "boot", "inv", "intent", 1.7e9, "docker", 4194001, 8)
UNIT = UnitRecord("vllm", 4194000, 7, "inv", "intent", 1.7e9, "docker")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document; of lists the first item."""
    if path:
        yield path
    rows = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if isinstance(value, list)
        else ()
    )
    for key, one in rows:
        yield from _places(one, (*path, key))


def _with(document: str, path: tuple[Any, ...], value: object) -> Any:
    whole = json.loads(document)
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return whole


def _carried() -> str:
    """Of an engine that drains, on a card that has been worked on."""
    world = World(only("vllm")).up()
    world.ask(Verb.DRAIN, "vllm")
    world.tick(6)
    row = {"boot_id": procfs.boot_id(), "format": FORMAT, "carry": encode(pack(world.state))}
    return json.dumps(row)


def test_each_field_of_carry_json_with_each_type(tmp_path: Path) -> None:
    """It is put aside and told, or the first ticks go through with it and what they leave can be kept."""
    document, path = _carried(), tmp_path / "carry.json"
    wanted = only("vllm")
    places = list(_places(json.loads(document)["carry"]))
    assert len(places) > 60
    aside = taken = 0
    for place in places:
        for value in WRONG:
            path.write_text(json.dumps(_with(document, ("carry", *place), value)))
            store = CarryStore(tmp_path)
            found = store.load()
            if found is None:
                assert store.problems, (place, value)
                assert not path.exists()
                aside += 1
                continue
            taken += 1
            world = World(wanted)
            world.state = State(run="next", carried=found)
            try:
                world.tick(2)
                json.dumps(asdict(pack(world.state)))
            except Exception as error:
                msg = f"carry.json with {value!r:.40} at {place}"
                raise AssertionError(msg) from error
    assert aside > 300
    assert taken > 50


def _adopted(folder: Path) -> list[str]:
    launcher = DirectLauncher(folder, lambda: None)
    try:
        startup.engines_alive(folder)
        container_ids.recorded(folder / "backends")
        launcher.adopt()
        launcher.observe(1.0)
        return list(launcher.problems)
    finally:
        launcher.close()


def _unit_record(folder: Path) -> list[str]:
    problems: list[str] = []
    found = records.read_record(UnitRecord, folder / "backends" / "vllm.json", problems)
    if found is None:
        return problems
    assert isinstance(found.pid, int)
    assert isinstance(found.invocation, str)
    assert found.started_wall == found.started_wall
    return []


READERS: list[tuple[Callable[[Path], list[str]], object]] = [
    (_adopted, BACKEND),
    (_unit_record, UNIT),
]


@pytest.mark.parametrize(("read", "row"), READERS, ids=["direct", "systemd"])
def test_each_field_of_an_adoption_record_with_each_type(
    tmp_path: Path, read: Callable[[Path], list[str]], row: Any
) -> None:
    """Missing, of another type, another backend's, or no record at all: told, and nothing is raised."""
    good = asdict(row)
    (tmp_path / "backends").mkdir()
    path = tmp_path / "backends" / "vllm.json"
    texts = [json.dumps({**good, key: value}).encode() for key in good for value in WRONG]
    texts += [json.dumps({k: v for k, v in good.items() if k != key}).encode() for key in good]
    texts += [json.dumps({**good, "more": 1}).encode(), *RAW]
    told = 0
    for text in texts:
        path.write_bytes(text)
        told += bool(read(tmp_path))
        path.unlink(missing_ok=True)
    assert told > len(texts) / 2
    path.write_text(json.dumps(good))
    assert read(tmp_path) == [], "what is written is read"


@pytest.mark.parametrize("read", [_adopted, _unit_record], ids=["direct", "systemd"])
def test_an_adoption_record_that_is_no_file_or_not_ours(
    tmp_path: Path, read: Callable[[Path], list[str]]
) -> None:
    """A folder, a dangling link, a link to a device, a file that others may write."""
    (tmp_path / "backends").mkdir()
    path = tmp_path / "backends" / "vllm.json"
    path.mkdir()
    assert read(tmp_path)
    for one in tmp_path.glob("backends/*"):
        one.rmdir()
    for target in ("/nowhere/at-all", "/dev/zero"):
        path.symlink_to(target)
        assert read(tmp_path), target
        for one in tmp_path.glob("backends/*"):
            one.unlink()
    path.write_text(json.dumps(asdict(BACKEND if read is _adopted else UNIT)))
    path.chmod(0o666)
    assert read(tmp_path)
