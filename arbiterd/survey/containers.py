"""Engines in containers: images and running containers, as the clients on this host tell of them."""

from __future__ import annotations

import re
import subprocess

from arbiterd.files.trust import environ, tool
from arbiterd.survey.facts import Container, EngineName, Image

CLIENTS = ("docker", "podman")
_TIMEOUT_S = 10.0
_PORT = re.compile(r":(\d+)(?:-(\d+))?->")
_ENGINES: tuple[tuple[str, EngineName], ...] = (
    ("tensorflow/serving", "tensorflow"),
    ("vllm/vllm", "vllm"),
    ("ollama/ollama", "ollama"),
)


def engine_of_image(name: str) -> EngineName | None:
    """By the image's name, whatever registry it came from."""
    return next((engine for part, engine in _ENGINES if part in name), None)


def ports_of(text: str) -> tuple[int, ...]:
    """Host ports of a client's Ports column: '0.0.0.0:8500-8501->8500-8501/tcp, [::]:80->80/tcp'."""
    out: set[int] = set()
    for low, high in _PORT.findall(text):
        out |= set(range(int(low), int(high or low) + 1))
    return tuple(sorted(out))


def look() -> tuple[tuple[Image, ...], tuple[Container, ...], tuple[str, ...]]:
    """(images of known engines, running containers, what could not be asked)."""
    images: list[Image] = []
    running: list[Container] = []
    unseen: list[str] = []
    for client in CLIENTS:
        program = tool(client)
        if program is None:
            continue
        rows, why = _ask(program, "images", "--format", "{{.Repository}}:{{.Tag}}")
        if why:
            unseen.append(f"{client}: {why}")
            continue
        for (name,) in rows:
            engine = engine_of_image(name)
            if engine is not None and not name.endswith(":<none>"):
                images.append(Image(client, name, engine))
        shape = "{{.Names}}\t{{.Image}}\t{{.Ports}}"
        for row in _ask(program, "ps", "--format", shape)[0]:
            name, image, ports = (*row, "", "")[:3]
            engine = engine_of_image(image)
            running.append(Container(client, name, image, ports_of(ports), engine))
    return tuple(images), tuple(running), tuple(unseen)


def _ask(program: str, *argv: str) -> tuple[list[list[str]], str]:
    """Rows of tab-separated cells, or why there are none."""
    try:
        done = subprocess.run(
            [program, *argv],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=environ(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return [], lines[-1][:160] if lines else f"exit {done.returncode}"
    return [line.split("\t") for line in done.stdout.splitlines() if line.strip()], ""
