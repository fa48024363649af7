"""The records of carry.json as text: every class that may stand in it, with its fields and their types.

``python -m tests.pins.handoff`` writes handoff.txt. It refuses where a field has gone or has another type while
the format is the same: that needs a new number and a step in arbiterd/store/handoff_formats.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from arbiterd.core.state import Carry
from arbiterd.store.handoff_formats import FORMAT

FILE = Path(__file__).with_suffix(".txt")


def _within(kind: Any) -> Iterator[type]:
    """The classes of ours that a type is made of."""
    if isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Enum)):
        yield kind
    for one in get_args(kind):
        yield from _within(one)


def _shown(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def shape() -> str:
    """The text."""
    rows: list[str] = [f"format {FORMAT}"]
    waiting: list[Any] = [Carry]
    seen: set[type] = {Carry}
    while waiting:
        kind = waiting.pop(0)
        if not is_dataclass(kind):
            rows += [f"{_shown(kind)}: {one.value}" for one in kind]
            continue
        hints = get_type_hints(kind)
        for one in fields(kind):
            needed = one.default is MISSING and one.default_factory is MISSING
            text = re.sub(r"(?:[a-z_]+\.)+(?=[A-Z])", "", _shown(hints[one.name]))
            rows.append(f"{_shown(kind)}.{one.name}: {text}{' (must be there)' if needed else ''}")
            new = [inner for inner in _within(hints[one.name]) if inner not in seen]
            waiting += new
            seen.update(new)
    return "\n".join(rows) + "\n"


def lost(before: str, now: str) -> list[str]:
    """What an older daemon may have written that this one cannot read, and fields that it never wrote."""
    old, new = before.splitlines(), now.splitlines()
    return [row for row in old if row not in new] + [
        row for row in new if row not in old and row.endswith("(must be there)")
    ]


def main() -> None:
    """Write the file, or say what is missing."""
    before = FILE.read_text() if FILE.exists() else ""
    gone = lost(before, shape())
    if gone and before.startswith(f"format {FORMAT}\n"):
        sys.exit(
            f"format {FORMAT} has these: {gone}; raise FORMAT, and add a step (handoff_formats.py)"
        )
    FILE.write_text(shape())


if __name__ == "__main__":
    main()
