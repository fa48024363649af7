"""Which container client runs a backend's image on this host, and what stands in its way."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

from arbiterd.errors import Flaw
from arbiterd.files.trust import environ, tool
from arbiterd.model.settings import BackendSettings

SOCKET = "/run/docker.sock"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PING = b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"
_PING_S = 2.0
_INSPECT_S = 10.0
_PACKAGES = {"docker": "docker.io", "podman": "podman"}


class Found(NamedTuple):
    """The client, "" for none; ``problem`` says what is missing and what would mend it."""

    client: str
    problem: Flaw | None = None


def client_of(backend: BackendSettings, path: str = _PATH, docker_socket: str = SOCKET) -> Found:
    """The client of the file; else docker where its daemon answers, else podman."""
    if backend.container:
        return Found(backend.container, _trouble(backend, path, docker_socket))
    docker, podman = (tool(name, path) for name in ("docker", "podman"))
    if docker and docker_answers(docker_socket):
        return Found("docker")
    if podman:
        return Found("podman")
    if docker:
        return Found("docker", _silent(docker_socket))
    return Found(
        "",
        Flaw(
            f"neither docker nor podman is there to run image {backend.image}",
            "apt-get install podman",
        ),
    )


def _trouble(backend: BackendSettings, path: str, docker_socket: str) -> Flaw | None:
    name = backend.container
    if tool(name, path) is None:
        other = "podman" if name == "docker" else "docker"
        right = f'apt-get install {_PACKAGES[name]}, or write container = "{other}"'
        return Flaw(f"{name} is not there to run image {backend.image}", right)
    if name == "docker" and not docker_answers(docker_socket):
        return _silent(docker_socket)
    return None


def _silent(docker_socket: str) -> Flaw:
    return Flaw(f"docker's daemon does not answer on {docker_socket}", "systemctl start docker")


def docker_answers(docker_socket: str = SOCKET) -> bool:
    """GET /_ping on its socket: 200. Its socket unit alone (daemon broken) accepts, but says nothing."""
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(_PING_S)
            stream.connect(docker_socket)
            stream.sendall(_PING)
            return b" 200 " in stream.recv(64)
    except OSError:
        return False


def image_problem(client: str, image: str) -> Flaw | None:
    """Why this image cannot be run from here, None when it is there. Takes up to seconds: for people
    who ask, not for the daemon (podman wants to write its locks, which our sandbox forbids).
    """
    program = tool(client, _PATH)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "image", "inspect", "--format={{.Id}}", image],
            capture_output=True,
            text=True,
            timeout=_INSPECT_S,
            check=False,
            env=environ(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    absent = ("No such image", "image not known")
    if done.returncode and any(one in done.stderr for one in absent):
        return Flaw(f"{client} does not have image {image}", f"{client} pull {image}")
    return None


def proxied_port(pid: int) -> int:
    """The host port that this process forwards for docker, 0 when it is no docker-proxy."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return 0
    if words[0].rpartition("/")[2] != "docker-proxy" or "-host-port" not in words:
        return 0
    port = words[words.index("-host-port") + 1 :][:1]
    return int(port[0]) if port and port[0].isdigit() else 0
