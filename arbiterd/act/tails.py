"""The last lines of an engine's output: from the journal, or from its log file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

MOST = 256 * 1024  # bytes looked at of a file


def journal_tail(invocation: str, lines: int) -> tuple[str, ...]:
    """Oldest first. May take a second: the journal is synchronised first."""
    subprocess.run(["journalctl", "--sync"], check=False, capture_output=True, timeout=5)
    match = f"_SYSTEMD_INVOCATION_ID={invocation}"
    done = subprocess.run(
        ["journalctl", "--no-pager", "-o", "cat", "-n", str(lines), match],
        check=False,
        capture_output=True,
        timeout=10,
    )
    return tuple(done.stdout.decode(errors="replace").splitlines())


def file_tail(path: Path, lines: int) -> tuple[str, ...]:
    """Oldest first, () without a file; at most the last 256 KiB are looked at."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - MOST))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-lines:])
