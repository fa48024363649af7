"""A file is whole whenever its writer dies, and has its mode before its name."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arbiterd.files import unwritten
from arbiterd.store import atomic
from arbiterd.store.json_store import JsonStore

OLD, NEW = b'["old"]', b'["new"]'
Writer = Callable[[Path, bytes], object]


def _store(path: Path) -> JsonStore[list[str]]:
    return JsonStore(path, lambda row: [str(one) for one in row], list, absent=[])


def _put(path: Path, data: bytes) -> None:
    _store(path).put(["new"] if data == NEW else ["old"])


def _saved(path: Path, data: bytes) -> None:
    store = _store(path)
    store.save(["new"] if data == NEW else ["old"])
    store.close()


WRITERS = [
    pytest.param(atomic.write, id="write"),
    pytest.param(lambda path, data: atomic.write(path, data, sync=True), id="write synced"),
    pytest.param(atomic.rewrite, id="rewrite"),
    pytest.param(_put, id="put"),
    pytest.param(_saved, id="save"),
]


def _killed_in(name: str, writes: Callable[[], object]) -> None:
    """In a child that gets SIGKILL as it calls os.NAME."""
    child = os.fork()
    if child == 0:
        setattr(os, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        try:
            writes()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("before", [OLD, None], ids=["replaced", "new"])
@pytest.mark.parametrize("moment", ["rename", "fchmod"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_killed_before_the_rename_leaves_the_old_file(
    tmp_path: Path, writer: Writer, moment: str, before: bytes | None
) -> None:
    """What it left under the temporary name is closed to others, is never read and does not stand in the way
    of the next write.
    """
    path = tmp_path / "a.json"
    if before is not None:
        writer(path, before)
    _killed_in(moment, lambda: writer(path, NEW))
    assert (path.read_bytes() if path.exists() else None) == before
    (left,) = (one for one in tmp_path.iterdir() if one != path)
    if moment == "fchmod":
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert _store(path).load() == (["old"] if before else [])
    writer(path, NEW)
    assert path.read_bytes() == NEW


def test_a_temporary_file_that_was_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """One at most lies beside each file of the daemon's."""
    path = tmp_path / "a.json"
    _killed_in("rename", lambda: atomic.write(path, NEW))
    atomic.write(path, NEW)
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("writer", "synced"),
    [(atomic.write, False), (WRITERS[1].values[0], True), (atomic.rewrite, True)],
    ids=["write", "write synced", "rewrite"],
)
def test_what_must_outlive_a_power_cut_is_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Writer, synced: bool
) -> None:
    """The bytes first, then the name, then the folder that holds the name."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flushed(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def renamed(*names: Any, **folders: Any) -> None:
        calls.append("rename")
        rename(*names, **folders)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    writer(tmp_path / "a", NEW)
    assert calls == (["file", "rename", "folder"] if synced else ["rename"])


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(
    tmp_path: Path, umask: int, mode: int
) -> None:
    """Set on the open file."""
    before = os.umask(umask)
    try:
        atomic.write(tmp_path / "a", NEW, mode=mode)
        atomic.rewrite(tmp_path / "b", NEW, mode=mode)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [mode, mode]


# -- files of the operator's -----------------------------------------------------------------------
def test_a_file_of_the_operators_stays_his(tmp_path: Path) -> None:
    """Mode, attributes and the link that leads to it."""
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_bytes(OLD)
    real.chmod(0o604)
    try:
        os.setxattr(real, "user.note", b"mine")
        labelled = True
    except OSError:
        labelled = False  # a file system without attributes
    link.symlink_to(real)
    atomic.rewrite(link, NEW)
    assert link.is_symlink()
    assert (real.read_bytes(), stat.S_IMODE(real.stat().st_mode)) == (NEW, 0o604)
    assert not labelled or os.getxattr(real, "user.note") == b"mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_an_owner_is_kept_or_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file never changes hands in silence."""
    path = tmp_path / "a.toml"
    path.write_bytes(OLD)
    os.chown(path, 65534, 65534)
    atomic.rewrite(path, NEW)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refused)
    with pytest.raises(PermissionError):
        atomic.rewrite(path, OLD)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (NEW, ["a.toml"])


def test_a_file_that_is_a_mount_point_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be renamed over it: EBUSY."""

    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    path = tmp_path / "a.toml"
    path.write_bytes(OLD * 2)
    monkeypatch.setattr(os, "rename", busy)
    atomic.rewrite(path, NEW)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (NEW, ["a.toml"])


# -- whatever is wrong -----------------------------------------------------------------------------
class _Odd(Exception):
    """An error that no reader has thought of."""


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RecursionError("x"), AttributeError("x"), _Odd("x")]
)
def test_whatever_is_wrong_with_a_file_it_is_put_in_quarantine_and_told(
    tmp_path: Path, error: Exception
) -> None:
    """``look`` tells it and changes nothing; ``load`` moves the file; the next save is as if there were none."""

    def parse(_: object) -> list[str]:
        raise error

    path = tmp_path / "a.json"
    path.write_bytes(OLD)
    path.chmod(0o600)
    store: JsonStore[list[str]] = JsonStore(path, parse, list, absent=[])
    assert store.look()[0] == []
    assert (str(path) in store.look()[1], path.read_bytes()) == (True, OLD)
    assert store.load() == []
    assert [one.endswith("; kept as a.broken") for one in store.problems] == [True]
    assert (path.exists(), (tmp_path / "a.broken").read_bytes()) == (False, OLD)
    store.put(["new"])
    assert path.read_bytes() == NEW


def test_a_save_that_fails_is_told_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the tick goes on, and the newest value is written when there is room."""
    path = tmp_path / "a.json"
    before = unwritten.told()  # what another test has left

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        _saved(path, NEW)
    told = f"cannot write {path}: No space left on device"
    assert set(unwritten.told()) - set(before) == {told}
    unwritten.catch_up()
    assert path.read_bytes() == NEW
    assert told not in unwritten.told()
