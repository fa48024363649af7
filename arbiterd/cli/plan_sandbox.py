"""The sandbox of a backend's unit in ``plan``."""

from __future__ import annotations

import os

from arbiterd.act.launch.base import home_of
from arbiterd.act.launch.systemd import DEFAULT_USER
from arbiterd.linux.sandbox_host import sandbox_of
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.settings import Settings


def sandbox_rows(settings: Settings, spec: LaunchSpec) -> list[dict[str, str]] | str:
    """Its directives as a start now would write them, or why there are none."""
    if spec.container is not None:
        return f"none of the arbiter's: {spec.container.client} confines the engine"
    asked = settings.arbiter.launcher
    if asked == "direct" or (asked == "auto" and not os.path.isdir("/run/systemd/system")):
        return "none: the direct launcher has no units"
    user = spec.user or DEFAULT_USER
    rows = sandbox_of(spec, user, home_of(user))
    if not rows:
        return "none: the file leaves all of it out"
    return [{"directive": one.name, "value": one.value, "reason": one.reason} for one in rows]


def sandbox_line(rows: object) -> str:
    """One line for people."""
    if not isinstance(rows, list):
        return str(rows)
    return "; ".join(f"{row['directive']}={row['value']}" for row in rows)
