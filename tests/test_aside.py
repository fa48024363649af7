"""Work beside the loop where pids are used up."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from arbiterd.aside import _Keeper, _Work
from arbiterd.core.state import Carry
from arbiterd.files import bounded
from arbiterd.report.aside import Aside
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sim.gpu import SimGpu
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from tests.report.test_journal import INCIDENT
from tests.support import wait_until


class Refusing:
    """Every thread but the keeper's own is refused while ``on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = True
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if self.on and thread.name != "aside":
                msg = "can't start new thread"
                raise RuntimeError(msg)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)


def test_what_cannot_be_begun_now_is_begun_later_in_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller sees nothing of it."""
    keeper = _Keeper()
    done: list[object] = []
    refusing = Refusing(monkeypatch)
    for number in range(3):
        keeper.begin(_Work(done.append, (number,), "work"))
    assert done == []
    refusing.on = False
    wait_until(lambda: len(done) == 3)
    assert set(done) == {0, 1, 2}
    keeper.begin(_Work(lambda: done.append(3), (), "work"))
    wait_until(lambda: 3 in done)


def test_a_keeper_that_was_refused_itself_is_made_later() -> None:
    """Nothing is lost, nothing is raised."""
    keeper = _Keeper()
    done: list[object] = []
    start = threading.Thread.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        keeper.begin(_Work(lambda: done.append("first"), (), "work"))
    assert threading.Thread.start is start
    keeper.begin(_Work(lambda: done.append("second"), (), "work"))
    wait_until(lambda: len(done) == 2)


def _refuse(_: threading.Thread) -> None:
    msg = "can't start new thread"
    raise RuntimeError(msg)


def test_state_is_kept_and_files_are_read_as_soon_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No thread to be had in the middle of a tick: nothing is raised that would end it, and what was to be
    kept is written later.
    """
    (tmp_path / "x").write_text("x")
    refusing = Refusing(monkeypatch)
    incidents, carry = IncidentStore(tmp_path), CarryStore(tmp_path)
    notes: list[str] = []
    incidents.save((INCIDENT,))
    carry.save(Carry())
    aside: Aside[str] = Aside(notes.append, str)
    aside.put("a", 1)
    with pytest.raises(OSError, match="new thread"):
        bounded.read(tmp_path / "x", 10)
    refusing.on = False
    wait_until(
        lambda: (tmp_path / "incidents.json").exists() and (tmp_path / "carry.json").exists()
    )
    aside.put("b", 1)
    wait_until(lambda: notes == ["a", "b"])
    assert bounded.read(tmp_path / "x", 10) == b"x"
    incidents.close()
    carry.close()
    assert aside.close()


@pytest.mark.parametrize("refused", ["process", "thread"])
def test_a_reader_that_cannot_be_started_is_a_reason_and_tried_again(
    refused: str, monkeypatch: pytest.MonkeyPatch, sim_env: dict[str, str], gpu: SimGpu
) -> None:
    """EAGAIN of fork or clone: the loop goes on, says why it is blind, and sees as soon as it may."""
    for key, value in sim_env.items():
        monkeypatch.setenv(key, value)
    before = set(os.listdir("/proc/self/fd"))
    source = NvmlSource()
    with pytest.MonkeyPatch.context() as patch:
        if refused == "process":
            patch.setattr(subprocess, "Popen", _no_process)
        else:
            patch.setattr(threading.Thread, "start", _refuse)
        source.start()
        source.request(time.monotonic(), processes=True)
    assert "cannot be started" in source.latest(time.monotonic()).nvml
    assert set(os.listdir("/proc/self/fd")) <= before

    def sees() -> bool:
        source.request(time.monotonic(), processes=True)
        return not source.latest(time.monotonic()).nvml

    wait_until(sees)
    assert len(source.latest(time.monotonic()).devices) == 1
    source.close()


def _no_process(*_: object, **__: object) -> None:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
