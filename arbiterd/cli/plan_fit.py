"""The lines of ``plan`` and ``check`` about models, walls and MIG slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arbiterd.engines.base import Wall
from arbiterd.fit.types import Fit, Verdict
from arbiterd.fit.verdict import slice_users
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.quantities import format_size


def fit_row(fit: Fit) -> dict[str, object]:
    """For JSON. Sizes are bytes; ``predicted_bytes`` is the sum of the terms, null when unknown."""
    return {
        "model": fit.model,
        "verdict": fit.verdict.value,
        "reason": fit.reason,
        "right": fit.right,
        "predicted_bytes": fit.predicted_bytes,
        "room_bytes": fit.room_bytes,
        "room": fit.room_text,
        "certain": fit.certain,
        "terms": [{"name": t.name, "bytes": t.size_bytes, "text": t.text} for t in fit.terms],
        "notes": list(fit.notes),
    }


def fit_lines(fit: Fit) -> list[str]:
    """For people: the verdict, each term, what would be right."""
    lines = [f"model {fit.model}: {fit.verdict.value}: {fit.reason}"]
    if fit.terms:
        lines += [
            f"  {format_size(term.size_bytes):>10}  {term.name} ({term.text})" for term in fit.terms
        ]
        lines.append(f"  {format_size(fit.predicted_bytes or 0):>10}  of {fit.room_text}")
    if fit.right:
        what = "" if fit.verdict is Verdict.CANNOT_TELL and not fit.terms else "would be right: "
        lines.append(f"  {what}{fit.right}")
    lines += [f"  note: {note}" for note in fit.notes]
    return lines


def wall_rows(walls: Sequence[Wall]) -> list[dict[str, str]]:
    """For JSON."""
    return [{"kind": one.kind, "text": one.text} for one in walls]


def slice_rows(
    devices: Sequence[Device], placements: Mapping[str, Placement]
) -> list[dict[str, object]]:
    """Every MIG slice of the host, for JSON."""
    return [
        {
            "uuid": one.uuid,
            "parent_uuid": one.parent_uuid,
            "gpu_index": one.index,
            "name": one.name,
            "capacity_bytes": one.capacity_bytes,
            "backends": list(users),
        }
        for one, users in slice_users(devices, placements)
    ]


def slice_lines(devices: Sequence[Device], placements: Mapping[str, Placement]) -> list[str]:
    """Every MIG slice of the host, for people; GPUs in MIG mode without any are named."""
    found = slice_users(devices, placements)
    lines = [
        f"MIG slice {one.uuid} of GPU {one.index} {one.name}: "
        f"{format_size(one.capacity_bytes)}, {', '.join(users) or 'nobody in this mode'}"
        for one, users in found
    ]
    parents = {one.parent_uuid for one, _ in found}
    lines += [
        f"GPU {one.index} {one.name} is in MIG mode and has no slices yet (docs/walls.md)"
        for one in devices
        if one.mig_enabled and one.uuid not in parents
    ]
    return lines
