"""What OOMs have taught, in ``arbiterctl plan``: caps as the daemon's next start will have them."""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.core.memory import learn
from arbiterd.core.state import State
from arbiterd.model.backend import Placement
from arbiterd.model.observation import HostFacts, Observation
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Settings
from arbiterd.quantities import format_size


def applied(
    settings: Settings,
    configured: dict[str, Placement],
    versions: Mapping[str, str],
    learned: Mapping[str, LearnedCap],
) -> dict[str, Placement]:
    """What the daemon would start with: the same function that it uses."""
    return learn.apply(configured, _seen(versions), State("plan", learned=learned), settings)


def _seen(versions: Mapping[str, str]) -> Observation:
    host = HostFacts(versions=versions)
    return Observation(0.0, 0.0, 0.0, devices={}, nvml="", units={}, health={}, host=host)


def lowered(
    settings: Settings,
    configured: Placement,
    placed: Placement,
    versions: Mapping[str, str],
    learned: Mapping[str, LearnedCap],
) -> dict[str, object]:
    """What was learned, and by how many OOMs."""
    keys = (
        learn.key(settings, _seen(versions), configured.backend, uuid)
        for uuid in configured.devices
    )
    found = next((learned[one] for one in keys if one in learned), None)
    less = configured.cap_bytes - placed.cap_bytes
    return {
        "configured_bytes": configured.cap_bytes,
        "lowered_bytes": less,
        "ooms": found.ooms if found else 0,
        "learned": found.reason if found else "",
    }


def how_lowered(settings: Settings, row: dict[str, object]) -> str:
    """': 55 % = 12.93 GiB, 1.10 GiB less after 2 OOMs', "" for a cap as configured."""
    size, less, ooms = row["configured_bytes"], row["lowered_bytes"], row["ooms"]
    if not ooms or not isinstance(size, int) or not isinstance(less, int):
        return ""
    share = settings.active.shares[str(row["name"])]
    part = f"{share.fraction:.0%} = ".replace("%", " %") if share.fraction is not None else ""
    count = "1 OOM" if ooms == 1 else f"{ooms} OOMs"
    what = f"{format_size(less)} less" if row["gpu"] else "on the CPU"
    name = row["name"]
    return f": {part}{format_size(size)}, {what} after {count}; undo: arbiterctl caps reset {name}"
