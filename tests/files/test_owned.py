"""State of the daemon is believed only when nobody else could have written it; links are not followed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from arbiterd.act.launch.base import write_files
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.takeover import read_record, record_path
from arbiterd.core.state import Carry
from arbiterd.daemon.lock import Lock
from arbiterd.daemon.startup import engines_alive
from arbiterd.errors import ArbiterError, LaunchError
from arbiterd.files.owned import (
    FolderRefused,
    NotTrusted,
    claim,
    open_log,
    read_owned,
    top,
)
from arbiterd.files.placing import make_folder
from arbiterd.gateway.runtime import GatewayGone, ask
from arbiterd.linux import procfs
from arbiterd.linux.container_ids import recorded
from arbiterd.model.launch import FileSpec
from arbiterd.settings.history import ConfigFiles
from arbiterd.store.atomic import write
from arbiterd.store.gpu_inventory import Inventory
from arbiterd.store.handoff import CarryStore
from arbiterd.store.incidents import IncidentStore
from arbiterd.store.learned_caps import LearnedStore

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
NOBODY = 65534
Spoil = Callable[[Path], None]


def _writable_by_group(path: Path) -> None:
    path.chmod(0o664)


def _writable_by_all(path: Path) -> None:
    path.chmod(0o666)


def _linked(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def _two_names(path: Path) -> None:
    os.link(path, path.with_name("other-name"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _given_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


SPOILED = [
    pytest.param(_writable_by_group, "others may write it"),
    pytest.param(_writable_by_all, "others may write it"),
    pytest.param(_linked, "symbolic link"),
    pytest.param(_two_names, "2 names"),
    pytest.param(_fifo, "no regular file"),
    pytest.param(_given_away, "belongs to", marks=AS_ROOT),
]
every_way = pytest.mark.parametrize(("spoil", "why"), SPOILED)


@every_way
def test_a_file_that_others_could_have_written_is_not_read(
    tmp_path: Path, spoil: Spoil, why: str
) -> None:
    """Owner, mode, links of both kinds, and what is no file at all; the reason names the path."""
    path = tmp_path / "state.json"
    write(path, b"[]")
    assert read_owned(path) == b"[]"
    spoil(path)
    with pytest.raises(NotTrusted, match=why) as refused:
        read_owned(path)
    assert str(path) in str(refused.value)


@every_way
def test_state_that_is_not_trusted_is_put_aside_and_told(
    tmp_path: Path, spoil: Spoil, why: str
) -> None:
    """incidents.json, learned.json, gpus.json, carry.json: nothing of them is used, each is named."""
    texts = {
        "incidents.json": "[]",
        "learned.json": "[]",
        "gpus.json": "[]",
        "carry.json": json.dumps({"boot_id": procfs.boot_id(), "carry": {}}),
    }
    for name, text in texts.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder / name, text.encode())
        spoil(folder / name)
    incidents = IncidentStore(tmp_path / "incidents.json")
    learned = LearnedStore(tmp_path / "learned.json")
    carry = CarryStore(tmp_path / "carry.json")
    assert (incidents.load(), learned.load(), carry.load()) == ((), {}, None)
    gpus = Inventory(tmp_path / "gpus.json")
    problems = (incidents.problems, learned.problems, gpus.store.problems, carry.problems)
    for found, name in zip(problems, texts, strict=True):
        [said] = found
        assert why in said, said
        assert f"kept as {Path(name).with_suffix('.broken')}" in said
        assert not (tmp_path / name / name).exists()


@every_way
def test_a_record_that_others_could_have_written_adopts_nothing(
    tmp_path: Path, spoil: Spoil, why: str
) -> None:
    """A record makes the daemon signal a pid: here its own parent's, which must not become a backend."""
    runtime = tmp_path / "run"
    launcher = DirectLauncher(runtime, lambda: None)
    found = procfs.ref(os.getpid())
    assert found is not None
    row = {
        "backend": "vllm",
        "pid": found.pid,
        "start_time": found.start_time,
        "boot_id": procfs.boot_id(),
        "invocation": "a",
        "intent": "b",
        "started_wall": 0.0,
    }
    write(runtime / "backends" / "vllm.json", json.dumps(row).encode())
    assert engines_alive(runtime)
    spoil(runtime / "backends" / "vllm.json")
    try:
        assert not engines_alive(runtime)
        launcher.adopt()
        assert launcher.observe(1.0) == {}
        [said] = launcher.problems
        assert why in said
    finally:
        launcher.close()


@every_way
def test_a_layout_that_others_could_have_written_is_not_started(
    tmp_path: Path, spoil: Spoil, why: str
) -> None:
    """last-good.toml names commands and their users; so do the others that a restart knows of."""
    good = tmp_path / "last-good.toml"
    write(good, b'mode = "A"\n', mode=0o600)
    files = ConfigFiles(tmp_path)
    assert files.distrusted() == []
    spoil(good)
    assert files.last_good(Path("/etc/x.toml"), {}) is None
    assert any(why in one for one in files.distrusted())
    file = tmp_path / "new.toml"
    file.write_text("x")
    row = {"sha256": hashlib.sha256(b"x").hexdigest(), "reason": "it did not come up"}
    for name in ("real", "other-name"):
        (tmp_path / name).unlink(missing_ok=True)
    write(tmp_path / "rolled-back.json", json.dumps(row).encode())
    assert files.read().reason == "it did not come up"
    spoil(tmp_path / "rolled-back.json")
    assert files.read().reason == ""


@every_way
def test_container_ids_and_takeover_records_are_held_to_the_same(
    tmp_path: Path, spoil: Spoil, why: str
) -> None:
    """An id file says whose processes are stopped; the takeover's record, which units are enabled."""
    cid = tmp_path / "vllm.docker.cid"
    write(cid, b"a" * 64)
    assert recorded(tmp_path)["vllm"].id == "a" * 64
    spoil(cid)
    assert recorded(tmp_path) == {}
    for name in ("real", "other-name"):
        (tmp_path / name).unlink(missing_ok=True)
    write(record_path(str(tmp_path)), b"{}")
    spoil(record_path(str(tmp_path)))
    with pytest.raises(ArbiterError, match=why):
        read_record(record_path(str(tmp_path)))


def test_deeply_nested_json_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    """The parser gives up with an error of its own kind."""
    deep = b"[" * 200_000
    write(tmp_path / "carry.json", deep)
    write(tmp_path / "gpus.json", deep)
    write(tmp_path / "incidents.json", deep)
    write(tmp_path / "rolled-back.json", deep)
    carry, incidents = CarryStore(tmp_path), IncidentStore(tmp_path)
    assert (carry.load(), incidents.load()) == (None, ())
    assert all(len(one.problems) == 1 for one in (carry, incidents, Inventory(tmp_path).store))
    assert ConfigFiles(tmp_path).read().reason == ""


def test_a_writer_replaces_a_link_and_never_writes_through_it(tmp_path: Path) -> None:
    """Under the name, under the temporary name, and in place of the folder."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "a.json").symlink_to(victim)
    (folder / ".a.json.new").symlink_to(victim)
    write(folder / "a.json", b"[]")
    assert (victim.read_text(), read_owned(folder / "a.json")) == ("mine", b"[]")
    carry = CarryStore(folder)
    (folder / "carry.json").symlink_to(victim)
    carry.save(Carry())
    carry.close()
    assert victim.read_text() == "mine"
    assert not (folder / "carry.json").is_symlink()
    (tmp_path / "link").symlink_to(folder)
    for writes in (
        lambda: write(tmp_path / "link" / "b", b""),
        lambda: write(tmp_path / "link" / "b", b"", sync=True),
        lambda: make_folder(tmp_path / "link"),
        lambda: write_files(tmp_path / "link", [FileSpec("models.config", "x")]),
        lambda: open_log(tmp_path / "link" / "b"),
    ):
        with pytest.raises((NotTrusted, LaunchError), match="symbolic link"):
            writes()
    assert not (folder / "b").exists()
    (folder / "vllm.log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        open_log(folder / "vllm.log")


def test_the_lock_is_not_made_behind_a_link(tmp_path: Path) -> None:
    """It is truncated and written with our pid."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        Lock(tmp_path / "run")
    assert victim.read_text() == "mine"


def test_folders_of_state_are_closed_for_others_at_the_start(tmp_path: Path) -> None:
    """Mended and told; a link that root has made to another disk is followed, as it is no other's."""
    run = tmp_path / "run"
    run.mkdir(mode=0o777)
    run.chmod(0o777)
    lock = Lock(run)
    lock.close()
    assert stat.S_IMODE(run.stat().st_mode) == 0o755
    assert "others could write to it (mode 0777)" in lock.problem
    assert claim(run) == ""
    (tmp_path / "link").symlink_to(run)
    assert claim(tmp_path / "link") == ""
    store = IncidentStore(tmp_path / "link")
    write(run / "incidents.json", b"[]")
    assert (store.load(), store.problems, top(tmp_path / "link")) == ((), [], run)


@AS_ROOT
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """With the command that makes it ours; the same for a link that another user has made."""
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, NOBODY, NOBODY)
    with pytest.raises(FolderRefused, match=r"chown -h 0 .*run && chmod go-w"):
        Lock(run)
    os.chown(run, 0, 0)
    (tmp_path / "link").symlink_to(run)
    os.lchown(tmp_path / "link", NOBODY, NOBODY)
    with pytest.raises(FolderRefused):
        claim(tmp_path / "link")
    inner = run / "backends"
    inner.mkdir()
    os.chown(inner, NOBODY, NOBODY)
    with pytest.raises(NotTrusted, match="belongs to"):
        make_folder(inner)


def test_words_for_a_service_go_to_no_other_through_a_link(tmp_path: Path) -> None:
    """HAProxy's user owns the folder of its sockets: a link there must not reach another's socket."""
    real = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(real))
        listening.listen()
        (tmp_path / "runtime.sock").symlink_to(real)
        with pytest.raises(GatewayGone):
            ask(tmp_path / "runtime.sock", "show info", timeout_s=2)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
