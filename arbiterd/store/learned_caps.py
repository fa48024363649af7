"""What OOMs have taught, kept in state_dir/learned.json over restarts and reboots.

One entry per (mode, backend, GPU uuid, model, engine version). The file may be edited or removed
while the daemon is stopped; `arbiterctl caps reset NAME` is the way while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arbiterd.model.pressure import LearnedCap
from arbiterd.secrets.redact import Redactor
from arbiterd.store.json_store import JsonStore

_TEXTS = ("mode", "backend", "gpu", "model", "version", "reason")
_SIZES = ("lowered_bytes", "step_bytes", "ooms")


class LearnedStore(JsonStore[Mapping[str, LearnedCap]]):
    """By ``LearnedCap.key``, as core keeps them."""

    def __init__(self, state_dir: Path, redactor: Redactor | None = None) -> None:
        super().__init__(
            state_dir / "learned.json",
            lambda rows: {one.key: one for one in map(_cap, rows)},
            lambda caps: [asdict(one) for one in caps.values()],
            absent={},
            sync=True,
            redactor=redactor,
        )


def _cap(row: Any) -> LearnedCap:
    """One entry; a wrong type must not reach the arithmetic of caps."""
    for field in _TEXTS:
        if not isinstance(row[field], str):
            msg = f"{field} is no text: {row[field]!r}"
            raise TypeError(msg)
    for field in _SIZES:
        if type(row[field]) is not int or row[field] < 0:
            msg = f"{field} is no count of 0 or more: {row[field]!r}"
            raise ValueError(msg)
    at, on_cpu = row["at"], row["on_cpu"]
    if type(at) not in (int, float) or type(on_cpu) is not bool:
        msg = f"at is no number or on_cpu is not true or false: {at!r}, {on_cpu!r}"
        raise TypeError(msg)
    return LearnedCap(**row)
