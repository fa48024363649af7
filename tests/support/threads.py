"""The table of threads in docs/threads.md, as rows, and the threads that a process has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from arbiterd.aside import NAME_MAX

ROOT = Path(__file__).resolve().parents[2]
_PARTS = {"NAME": ".+", "GPU": ".+", "LANE": "(end|freeze|work)", "N": r"\d"}


class Row(NamedTuple):
    """A thread's name, with placeholders, and when it is there."""

    name: str
    there: str

    def fits(self, comm: str) -> bool:
        """Whether the kernel's name, cut short or not, may be this thread's."""
        words = [_PARTS.get(part, re.escape(part)) for part in self.name.split("-")]
        whole = re.fullmatch("-".join(words), comm) is not None
        begins = self.name.split("-")[0]
        return whole or (
            len(comm) == NAME_MAX and comm.startswith(f"{begins}-") and begins != self.name
        )


def table() -> list[Row]:
    """The rows of docs/threads.md."""
    text = (ROOT / "docs" / "threads.md").read_text()
    rows = [line.strip("|\n ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [Row(row[0], row[2]) for row in rows[2:]]


def of(pid: int) -> list[str]:
    """The kernel's names of a process's threads; the main thread's is ``main``."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found.append("main" if task.name == str(pid) else name)
    return found
