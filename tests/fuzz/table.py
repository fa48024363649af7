"""Every target, by name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import config, doors, engines, nvml, state, weights

TARGETS: tuple[Target, ...] = (
    *config.TARGETS,
    *doors.TARGETS,
    *engines.TARGETS,
    *nvml.TARGETS,
    *state.TARGETS,
    *weights.TARGETS,
)


def find(name: str) -> Target:
    """The target of this name."""
    return next(one for one in TARGETS if one.name == name)


def room_of(target: Target) -> str:
    """The module that it is defined in: alone in a process it is imported without the others."""
    rooms = (config, doors, engines, nvml, state, weights)
    return next(one.__name__ for one in rooms if target in one.TARGETS)
