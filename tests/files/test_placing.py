"""Files that the daemon writes for another process: its reader can read them under any umask."""

from __future__ import annotations

import grp
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.act.gateway.files import put
from arbiterd.act.launch.base import write_files, write_record
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.systemd_unit import properties
from arbiterd.daemon.lock import Lock
from arbiterd.files.placing import make_folder
from arbiterd.model.launch import FileSpec, LaunchSpec
from arbiterd.sense.gateway_log import GatewayLog
from arbiterd.store.atomic import write
from arbiterd.web.server import _unix


@pytest.fixture(params=[0o000, 0o007, 0o027, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """The daemon's umask: none, that of 0.2.0's unit, of ours, of a careful shell, all."""
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_engines_files_are_readable_for_every_user(umask: int, tmp_path: Path) -> None:
    """Files 0644 in folders 0755, the runtime folder included: the engine may be anybody."""
    runtime = tmp_path / "deep" / "run"
    Lock(runtime).close()
    launcher = DirectLauncher(runtime, threading.Event().set)
    try:
        write_files(runtime / "backends" / "tensorflow", [FileSpec("models.config", "x")])
    finally:
        launcher.close()
    there = runtime / "backends" / "tensorflow"
    assert _mode(there / "models.config") == 0o644
    assert {_mode(one) for one in (there, *list(there.parents)[:3])} == {0o755}


def test_what_an_engine_keeps_below_usr_is_writable_for_it(tmp_path: Path) -> None:
    """ProtectSystem=full would make it read-only; of a folder that is not there yet, what is. Never more
    than one package's share of /usr.
    """
    spec = LaunchSpec("ollama", ("ollama",), {"OLLAMA_MODELS": "/usr/share/nowhere/models"}, "i")
    found = dict(properties(spec, "/bin/ollama", "u", "/usr/share/doc", "/run/x.env"))
    assert found["ReadWritePaths"] == ("as", ["-/usr/share/doc", "-/usr/share/nowhere"])
    plain = LaunchSpec("ollama", ("ollama",), {}, "i")
    assert "ReadWritePaths" not in dict(
        properties(plain, "/bin/ollama", "u", str(tmp_path), "/run/x.env")
    )


def test_what_the_daemon_acts_on_is_written_by_nobody_else(umask: int, tmp_path: Path) -> None:
    """Records and folders: the operators' group may look, not write."""
    write_record(tmp_path / "vllm.json", {"pid": 1})
    assert _mode(tmp_path / "vllm.json") == 0o640
    make_folder(tmp_path / "backends")
    assert _mode(tmp_path / "backends") & 0o022 == 0


def test_a_folder_of_an_older_version_is_corrected(umask: int, tmp_path: Path) -> None:
    """0.2.0 left 0770 behind, and the runtime folder outlives the daemon."""
    old = tmp_path / "backends"
    old.mkdir()
    old.chmod(0o770)
    make_folder(old)
    assert _mode(old) == 0o755


def test_the_doors_files_are_for_haproxy_and_the_gate_only(umask: int, tmp_path: Path) -> None:
    """0640, in their group where there is one; log socket for them to write, API socket as well."""
    put(tmp_path / "live.map", "a b\n", shared=True)
    assert _mode(tmp_path / "live.map") == 0o640
    log = GatewayLog(tmp_path / "log.sock")
    log.close()
    assert _mode(tmp_path / "log.sock") == 0o660
    made = _unix(tmp_path / "admin.sock", "")
    made.close()
    assert _mode(tmp_path / "admin.sock") == 0o660


def test_a_file_goes_to_a_group_of_ours(umask: int, tmp_path: Path) -> None:
    """The group by name; one that does not exist changes nothing."""
    mine = grp.getgrgid(os.getgroups()[0] if os.getgroups() else os.getgid())
    write(tmp_path / "a", b"x", group=mine.gr_name)
    assert (tmp_path / "a").stat().st_gid == mine.gr_gid
    write(tmp_path / "b", b"x", group="no-such-group")
    assert _mode(tmp_path / "b") == 0o640


def test_a_socket_is_closed_until_it_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never open to others under its name, and the process's umask is left alone meanwhile."""
    seen: list[int] = []
    bind = socket.socket.bind

    def look(one: socket.socket, address: str) -> None:
        bind(one, address)
        seen.append(_mode(Path(address)))

    monkeypatch.setattr(socket.socket, "bind", look)
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is every thread's"))
    _unix(tmp_path / "admin.sock", "").close()
    assert seen == [0o600]
