"""Cases as data: what they mean is written in README.md beside this file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Step = Mapping[str, Any]
FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Case:
    """One case of an engine. ``env`` and ``argv`` are those the server needs; ``server`` is False
    where the case starts what it needs itself, by ``cli`` steps.
    """

    engine: str
    name: str
    shows: str
    steps: tuple[Step, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    server: bool = True

    @property
    def timed(self) -> bool:
        """Whether its outcome depends on the clock, so that a machine that was late may spoil it: it
        waits a fixed time, or compares the seconds that a model has left.
        """
        return any(step.get("do") == "sleep" or _counts_seconds(step) for step in self.steps)


def _counts_seconds(step: Step) -> bool:
    rows = step["expect"].get("ps", ()) if step.get("do") == "ps" else ()
    return any(isinstance(row["left_s"], int) for row in rows if isinstance(row, Mapping))


def load(engine: str) -> list[Case]:
    """Every case of ``tests/conformance/ENGINE.json``, with the file's env and argv filled in."""
    data = json.loads((FOLDER / f"{engine}.json").read_text())
    return [
        Case(
            engine=engine,
            name=one["id"],
            shows=one["shows"],
            steps=tuple(one["steps"]),
            env={**data.get("env", {}), **one.get("env", {})},
            argv=tuple(one.get("argv", data.get("argv", ()))),
            server=one.get("server", True),
        )
        for one in data["cases"]
    ]
