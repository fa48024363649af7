"""What a restart of the daemon must not lose, kept in runtime_dir/carry.json (core/backend/carry.py).

Written as traces are, with the names of classes, and with the number of its format: an older one is
migrated (store/handoff_formats.py). Never read over a reboot.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from arbiterd import __version__
from arbiterd.core.state import Carry
from arbiterd.linux import procfs
from arbiterd.secrets.redact import Redactor
from arbiterd.store.handoff_formats import FORMAT, migrated, pruned
from arbiterd.store.json_store import JsonStore
from arbiterd.trace.codec import decode, encode

NAME = "carry.json"


def _no_nan(text: str) -> float:
    """Format 1 has infinities: 'not before' may be one. A number that equals nothing is none."""
    if text == "NaN":
        msg = "NaN is not a number"
        raise ValueError(msg)
    return float(text)


def _row(carry: Carry | None) -> object:
    return {
        "boot_id": procfs.boot_id(),
        "format": FORMAT,
        "version": __version__,
        "carry": encode(carry),
    }


class CarryStore(JsonStore[Carry | None]):
    """``None``: there is nothing of this boot."""

    def __init__(self, runtime_dir: Path, redactor: Redactor | None = None) -> None:
        super().__init__(
            runtime_dir / NAME,
            self._carry,
            _row,
            absent=None,
            loads=partial(json.loads, parse_constant=_no_nan),
            redactor=redactor,
        )
        self._strange: list[str] = []

    def load(self) -> Carry | None:
        """What the daemon before us left in this boot; what another version wrote into it that this one has
        no place for is told.
        """
        found = super().load()
        if self._strange:
            keys = ", ".join(self._strange[:10])
            self.problems.append(f"{self.path}: written by another version; left out: {keys}")
        return found

    def _carry(self, found: Any) -> Carry | None:
        if found["boot_id"] != procfs.boot_id():
            return None
        row, strange = pruned(migrated(found["carry"], found.get("format", 1)))
        carry = decode(row)
        if not isinstance(carry, Carry):
            msg = f"a {type(carry).__name__} where a Carry belongs"
            raise TypeError(msg)
        for name, one in carry.backends.items():
            if one.name != name:
                msg = f"the state of {name!r} names the backend {one.name!r}"
                raise ValueError(msg)
        self._strange = strange
        return carry
