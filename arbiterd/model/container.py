"""A container as a launcher is told of it, and what its client takes for itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

# The client reads these itself: by name, their values would change the client, not the engine.
_CLIENTS_OWN: Final = re.compile(
    r"PATH|HOME|USER|TMPDIR|LD_.*|DOCKER_.*|CONTAINERS?_.*|XDG_.*|GO[A-Z]+|STORAGE_.*"
    r"|REGISTRY_.*|NOTIFY_SOCKET|LISTEN_.*|.*_PROXY|.*_proxy"
)

LABEL: Final = "gpu-arbiter"
Client = Literal["docker", "podman"]


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """The container an ``argv`` of ``client run`` makes. ``label`` (KEY=VALUE) names the backend and
    the runtime folder: by it, not by ``name``, a leftover is known as ours. ``cidfile``: where the
    client writes the container's id.
    """

    client: Client
    name: str
    image: str
    label: str
    cidfile: str


def clients_own(name: str) -> bool:
    """Whether docker or podman reads this variable itself."""
    return bool(_CLIENTS_OWN.fullmatch(name))
