"""Learned caps on disk: written when they change, read back equal, never fatal."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from arbiterd.core.memory import learn
from arbiterd.model.pressure import LearnedCap
from arbiterd.quantities import MIB
from arbiterd.store.learned_caps import LearnedStore
from tests.core.world import World, settings

CAP = LearnedCap(
    mode="A",
    backend="vllm",
    gpu="GPU-0",
    model="M",
    version="0.11",
    lowered_bytes=662 * MIB,
    step_bytes=662 * MIB,
    ooms=1,
    at=1e9,
    reason="the card was full by its own growth",
)


def test_learned_caps_survive_on_disk(tmp_path: Path) -> None:
    """By the key that core looks them up with."""
    store = LearnedStore(tmp_path)
    assert store.load() == {}
    store.save({CAP.key: CAP})
    more = replace(CAP, backend="ollama", on_cpu=True, at=5)
    store.save({CAP.key: CAP, more.key: more})
    store.close()
    assert LearnedStore(tmp_path).load() == {CAP.key: CAP, more.key: more}
    assert not (tmp_path / "learned.new").exists()


def test_a_key_is_the_one_core_uses() -> None:
    """Otherwise a kept cap would never be found again."""
    world = World(settings())
    where = learn.key(world.settings, world.observation(), "vllm", "GPU-0")
    assert replace(CAP, version="", model="M").key == where


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    """Four ticks a second must not wear out a disk: the file on disk is not even replaced."""
    store = LearnedStore(tmp_path)
    store.save({CAP.key: CAP})
    store.close()
    again = LearnedStore(tmp_path)
    loaded = again.load()
    before = (tmp_path / "learned.json").stat().st_ino
    again.save(dict(loaded))
    again.close()
    assert (tmp_path / "learned.json").stat().st_ino == before


def test_the_last_one_forgotten_leaves_an_empty_list(tmp_path: Path) -> None:
    """caps reset must outlive a restart as well."""
    store = LearnedStore(tmp_path)
    store.save({CAP.key: CAP})
    store.save({})
    store.close()
    assert json.loads((tmp_path / "learned.json").read_text()) == []
    assert LearnedStore(tmp_path).load() == {}


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "{}{}",
        "[1]",
        '[{"mode": "A"}]',
        json.dumps([{**asdict(CAP), "lowered_bytes": "much"}]),
        json.dumps([{**asdict(CAP), "lowered_bytes": -1}]),
        json.dumps([{**asdict(CAP), "on_cpu": 1}]),
        json.dumps([{**asdict(CAP), "backend": None}]),
        json.dumps([{**asdict(CAP), "more": 1}]),
    ],
)
def test_an_unreadable_file_is_kept_aside_and_said(tmp_path: Path, content: str) -> None:
    """Configured caps are in force; arbiterctl looks without touching it."""
    path = tmp_path / "learned.json"
    path.write_text(content)
    found, problem = LearnedStore(tmp_path).look()
    assert (found, path.read_text()) == ({}, content)
    assert str(path) in problem
    store = LearnedStore(tmp_path)
    assert store.load() == {}
    assert store.problems[0].startswith(f"cannot read {path}")
    assert (tmp_path / "learned.broken").read_text() == content
    assert not path.exists()
