"""What a restart of the daemon must not lose, kept in runtime_dir/carry.json (core/carry.py).

Never read over a reboot.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from arbiterd.core.state import DRAIN_SENTENCES, Carry
from arbiterd.files.typed import build, left_out
from arbiterd.linux import procfs
from arbiterd.secrets.redact import Redactor
from arbiterd.store.json_store import JsonStore

NAME = "carry.json"
# Keys of earlier versions that nothing is to be made of: a start's progress is measured anew.
RETIRED = frozenset({"progress_cpu", "progress_at", "progress_log"})


def _no_nan(text: str) -> float:
    """'Not before' may be infinite, but a number that equals nothing is none."""
    if text == "NaN":
        msg = "NaN is not a number"
        raise ValueError(msg)
    return float(text)


def _whole(carry: Carry) -> Carry:
    for name, one in carry.backends.items():
        if one.name != name:
            msg = f"the state of {name!r} names the backend {one.name!r}"
            raise ValueError(msg)
    return carry


def _of_today(carry: Any) -> Any:
    """What 0.2.0 wrote as this version writes it: why a backend drains was told by its sentence alone."""
    causes = {sentence: cause.value for cause, sentence in DRAIN_SENTENCES.items()}
    backends = carry.get("backends") if isinstance(carry, dict) else None
    for one in backends.values() if isinstance(backends, dict) else ():
        if isinstance(one, dict) and one.get("phase") == "draining":
            cause = causes.get(str(one.get("reason")))
            one.setdefault("drain", cause)
    return carry


class CarryStore(JsonStore[Carry | None]):
    """``None``: there is nothing of this boot."""

    def __init__(self, runtime_dir: Path, redactor: Redactor | None = None) -> None:
        super().__init__(
            runtime_dir / NAME,
            self._carry,
            lambda carry: {"boot_id": procfs.boot_id(), "carry": asdict(carry)} if carry else None,
            absent=None,
            loads=partial(json.loads, parse_constant=_no_nan),
            redactor=redactor,
        )
        self._strange: tuple[str, ...] = ()

    def load(self) -> Carry | None:
        """What the daemon before us left in this boot; what another version wrote into it that this one has
        no place for is told.
        """
        found = super().load()
        keys = [key for key in self._strange if key.rpartition(".")[2] not in RETIRED]
        if keys:
            text = f"{self.path}: written by another version; left out: {', '.join(keys[:10])}"
            self.problems.append(text)
        return found

    def _carry(self, found: Any) -> Carry | None:
        if found["boot_id"] != procfs.boot_id():
            return None
        row = _of_today(found["carry"])
        carry = _whole(build(Carry, row))
        self._strange = left_out(row, carry)
        return carry
