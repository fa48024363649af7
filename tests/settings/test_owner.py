"""The owner of the settings in force: what other threads post, what the journal is told, what is written."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.config import Loaded
from arbiterd.config.lines import Lines
from arbiterd.config.parse import Report
from arbiterd.core.mode.config_state import ConfigState, Kept
from arbiterd.model.decision import Decision
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.settings.history import ConfigFiles
from arbiterd.settings.owner import FileChanged, Refused, SettingsOwner
from tests.core.test_switch import file

QUIET = Decision((), (), (), {}, {}, (), blind=False, settled=False)


def loaded(mode: str) -> Loaded:
    """The file with this mode line, accepted."""
    return Loaded(file(mode), (), f"text of {mode}", Report("f", Lines("")))


@pytest.fixture
def owner(tmp_path: Path) -> SettingsOwner:
    """Of a daemon that has started on A."""
    files = ConfigFiles(tmp_path)
    one = SettingsOwner(ConfigState(file("A"), file("A"), "text of A"), files, lambda given: given)
    one.started(alive=False)
    return one


def names(events: tuple[Event, ...]) -> list[EventName]:
    """Of events."""
    return [one.name for one in events]


def test_what_is_posted_changes_nothing_until_the_loop_takes_it(owner: SettingsOwner) -> None:
    """From another thread; the latest of several wins, each is told."""
    before = owner.state
    for mode in ("B", "C"):
        poster = threading.Thread(target=owner.post, args=(loaded(mode),))
        poster.start()
        poster.join()
    assert owner.state is before
    assert names(owner.take()) == [EventName.MODE_SWITCH, EventName.MODE_SWITCH]
    assert owner.state.in_force.mode == owner.state.newest.mode == "C"


def test_files_hold_what_a_restart_must_know(owner: SettingsOwner, tmp_path: Path) -> None:
    """The newest, and the one before it until it has come through."""
    owner.post(loaded("B"))
    owner.take()
    disk = ConfigFiles(tmp_path).read()
    assert (disk.good.text, disk.previous.text) == ("text of B", "text of A")
    owner.after(QUIET, owner.state.in_force, "")
    assert ConfigFiles(tmp_path).read().previous == Kept()
    assert (tmp_path / "last-good.toml").stat().st_mode & 0o777 == 0o600


def test_an_edited_file_is_told_once_and_again_after_a_rollback(owner: SettingsOwner) -> None:
    """Each second the file's digest is posted; only a new one is an event."""
    for sha, told in (("sha-A", 0), ("sha-X", 1), ("sha-X", 0), ("sha-A", 0), ("sha-Y", 1)):
        owner.post(FileChanged(sha))
        assert len(owner.take()) == told, sha
        assert owner.state.pending == (sha != "sha-A")
    owner.post(loaded("B"))
    owner.take()
    assert not owner.state.pending
    owner.after(replace(QUIET, back_to=file("A")), None, "vllm cannot run in it")
    assert owner.state.pending
    owner.post(FileChanged("sha-B"))
    assert names(owner.take()) == [EventName.CONFIG_PENDING]


def test_a_rolled_back_layout_is_a_problem_until_the_file_is_put_back(owner: SettingsOwner) -> None:
    """Or until it is accepted again; a problem of the text stays until a reload."""
    owner.post(loaded("B"))
    owner.take()
    owner.after(replace(QUIET, back_to=file("A")), None, "vllm cannot run in it")
    assert "was rolled back: vllm cannot run in it" in owner.state.refused[0]
    owner.post(FileChanged("sha-A"))
    owner.take()
    assert not owner.state.refused
    said = Event(EventName.RELOAD_REFUSED, Severity.ERROR, "no")
    owner.post(Refused(("line 1 is wrong",), (said,)))
    owner.post(FileChanged("sha-A"))
    assert owner.take() == (said,)
    assert owner.state.refused == ("line 1 is wrong",)
    owner.post(loaded("A"))
    owner.take()
    assert not owner.state.refused


def test_a_newer_file_waits_for_the_end_of_the_switch(owner: SettingsOwner, tmp_path: Path) -> None:
    """What came through meanwhile is the way back of the newer one."""
    owner.post(loaded("B"))
    owner.take()
    under_way = replace(QUIET, switch=object())  # type: ignore[arg-type]
    owner.after(under_way, file("A"), "")
    owner.post(loaded("C"))
    owner.take()
    assert owner.state.in_force.mode == "B"
    assert owner.state.queued is not None
    owner.after(QUIET, file("B"), "")
    owner.take()
    assert owner.state.in_force.mode == "C"
    disk = ConfigFiles(tmp_path).read()
    assert (disk.good.text, disk.previous.text) == ("text of C", "text of B")
