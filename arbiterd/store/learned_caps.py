"""What OOMs have taught, kept in state_dir/learned.json over restarts and reboots.

One entry per (mode, backend, GPU uuid, model, engine version). The file may be edited or removed
while the daemon is stopped; `arbiterctl caps reset NAME` is the way while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from arbiterd.model.pressure import LearnedCap
from arbiterd.store.json_store import Kept

_TEXTS = ("mode", "backend", "gpu", "model", "version", "reason")
_SIZES = ("lowered_bytes", "step_bytes", "ooms")


class LearnedStore(Kept[LearnedCap]):
    """By ``LearnedCap.key``, as core keeps them."""

    name = "learned.json"

    def load(self) -> dict[str, LearnedCap]:
        """What was kept."""
        return {one.key: one for one in self.load_all()}

    def look(self) -> tuple[dict[str, LearnedCap], str]:
        """(what is kept, why it cannot be read); changes nothing: for arbiterctl."""
        found, problem = self.read()
        return {one.key: one for one in found}, problem

    def save(self, learned: Mapping[str, LearnedCap]) -> None:
        """Keep these from now on."""
        self.save_all(tuple(learned.values()))

    def encode(self, one: LearnedCap) -> object:
        """All fields."""
        return asdict(one)

    def decode(self, row: Any) -> LearnedCap:
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
