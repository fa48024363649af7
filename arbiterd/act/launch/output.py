"""The last lines of an engine's output: from the journal, or from its log file."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from arbiterd.files.trust import tool

_INVOCATION = "_SYSTEMD_INVOCATION_ID"
MOST = 256 * 1024  # bytes looked at of a file


def journal_tail(unit: str, invocation: str, lines: int) -> tuple[str, ...]:
    """Oldest first, of this invocation. May take a second: the journal is synchronised first.

    The last words of a process that ends at once may come to journald after its unit is gone down; they
    then carry the unit and no invocation (1 of 60 on a busy machine, systemd 252). So lines are found by
    unit, and end where another invocation's begin.
    """
    journalctl = tool("journalctl")
    if journalctl is None:
        return ()
    subprocess.run([journalctl, "--sync"], check=False, capture_output=True, timeout=30)
    done = subprocess.run(
        [journalctl, "--no-pager", "--all", "-o", "json", "-n", str(lines),
         f"--output-fields=MESSAGE,{_INVOCATION}", f"_SYSTEMD_UNIT={unit}"],
        check=False,
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    return own_lines(done.stdout.splitlines(), invocation)


def own_lines(rows: Sequence[bytes], invocation: str) -> tuple[str, ...]:
    """The messages from this invocation's first on; without any, those after the last of another one."""
    entries = [json.loads(row) for row in rows]
    names = [entry.get(_INVOCATION) for entry in entries]
    first = 0
    if invocation in names:
        first = names.index(invocation)
    elif any(names):
        first = max(index for index, name in enumerate(names) if name) + 1
    return tuple(_text(entry.get("MESSAGE")) for entry in entries[first:])


def _text(message: object) -> str:
    """Bytes that are no text (colours, progress bars) come as numbers, nothing as null."""
    if isinstance(message, list):
        return bytes(message).decode(errors="replace")
    return str(message or "")


def files_tail(paths: Sequence[Path], lines: int) -> tuple[str, ...]:
    """Oldest first, of files that follow each other; at most the last 256 KiB of each are looked at."""
    text = "".join(_end(path) for path in paths)
    return tuple(text.splitlines()[-lines:])


def _end(path: Path) -> str:
    """The end of a file, "" without one."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            start = max(0, file.tell() - MOST)
            file.seek(start)
            # the rest of a line may be the rest of a secret, which nobody could find any more
            half = file.readline() if start else b""
            return (file.read() or half).decode(errors="replace")
    except OSError:
        return ""
