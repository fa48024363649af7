"""Which client runs an image here: found by a socket that answers and programs that are there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arbiterd.linux import container_ids
from arbiterd.model.settings import Kind
from arbiterd.sense.containers import client_of, docker_answers, proxied_port
from arbiterd.sense.versions import version_of
from tests.core.world import backend

IMAGE = backend("o", Kind.OLLAMA, image="ollama/ollama:0.33.0")


@contextmanager
def _daemon(path: Path, answer: bytes) -> Iterator[None]:
    """A unix socket that answers every request with these bytes, as docker's daemon does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    one.recv(1024)
                    one.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _programs(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("programs", "answers", "asked", "client", "problem"),
    [
        (("docker", "podman"), True, "", "docker", ""),
        (("docker", "podman"), False, "", "podman", ""),
        (("podman",), True, "", "podman", ""),
        (("docker",), False, "", "docker", "does not answer on"),
        ((), True, "", "", "neither docker nor podman is there"),
        (("docker",), True, "podman", "podman", 'write container = "docker"'),
        (("podman",), False, "docker", "docker", "apt-get install docker.io"),
        (("docker", "podman"), False, "docker", "docker", "systemctl start docker"),
        (("docker", "podman"), True, "podman", "podman", ""),
    ],
)
def test_the_client_is_found_out_or_what_is_missing_is_said(
    tmp_path: Path, programs: tuple[str, ...], answers: bool, asked: str, client: str, problem: str
) -> None:
    """Docker first where its daemon answers; what the file names is never changed."""
    path, where = tmp_path / "docker.sock", _programs(tmp_path, *programs)
    given = backend("o", Kind.OLLAMA, image=IMAGE.image, container=asked)
    if answers:
        with _daemon(path, b"HTTP/1.0 200 OK\r\n\r\nOK"):
            found = client_of(given, where, str(path))
    else:
        found = client_of(given, where, str(path))
    assert found.client == client
    assert problem in str(found.problem or "")
    assert bool(problem) == bool(found.problem)


def test_a_socket_that_refuses_is_no_answer(tmp_path: Path) -> None:
    """As a proxy in front of a dead daemon does."""
    path = tmp_path / "docker.sock"
    with _daemon(path, b"HTTP/1.0 502 Bad Gateway\r\n\r\n"):
        assert not docker_answers(str(path))


def test_an_images_version_is_its_tags_never_the_hosts(tmp_path: Path) -> None:
    """A host's own ollama says nothing of the image's."""
    del tmp_path
    assert version_of(IMAGE) == "0.33.0"
    assert version_of(backend("o", Kind.OLLAMA, image="ollama/ollama")) == ""


def test_only_whole_ids_are_read(tmp_path: Path) -> None:
    """Half-written files, other names; the newer of two clients wins."""
    one, two = "a" * 64, "b" * 64
    (tmp_path / "x.docker.cid").write_text(one)
    (tmp_path / "y.podman.cid").write_text("abc")
    (tmp_path / "z.lxc.cid").write_text(two)
    found = container_ids.recorded(tmp_path)
    assert {name: (c.client, c.id) for name, c in found.items()} == {"x": ("docker", one)}
    assert container_ids.recorded(tmp_path / "nowhere") == {}
    assert not container_ids.any_alive(tmp_path)


def test_a_process_that_is_no_docker_proxy_forwards_nothing() -> None:
    """Ourselves, and one that is gone."""
    import os

    assert proxied_port(os.getpid()) == 0
    assert proxied_port(2**22 + 1) == 0
