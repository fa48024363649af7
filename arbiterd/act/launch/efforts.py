"""Signs of progress of engines that start or load: I/O, host memory, and output kept by journald.

Measured for watched backends only, at most once a second; the journal is asked aside, since that is a
process of its own (20-50 ms).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from arbiterd.aside import aside
from arbiterd.files.trust import tool
from arbiterd.linux import procfs

_MEASURE_S = 1.0
_JOURNAL_S = 10.0
_ANSWER_S = 20.0


@dataclass(slots=True)
class _Seen:
    measured_at: float = -1e9
    io_bytes: int = 0
    memory_bytes: int = 0
    asked_at: float = -1e9
    asking: bool = False
    last_entry: int = 0


class Efforts:
    """One launcher's."""

    def __init__(self) -> None:
        self._watched: frozenset[str] = frozenset()
        self._seen: dict[str, _Seen] = {}

    def watch(self, backends: Collection[str]) -> None:
        """Measure these from now on, and no others."""
        if backends != self._watched:
            self._watched = frozenset(backends)
            self._seen = {name: self._seen.get(name, _Seen()) for name in self._watched}

    def usage(self, backend: str, pids: Iterable[int], now: float) -> tuple[int, int]:
        """(bytes of I/O so far, bytes resident) of living processes together; (0, 0) unwatched."""
        seen = self._seen.get(backend)
        if seen is None:
            return 0, 0
        if now - seen.measured_at >= _MEASURE_S:
            seen.measured_at = now
            found = list(pids)
            seen.io_bytes = sum(procfs.io_bytes(pid) for pid in found)
            seen.memory_bytes = sum(procfs.resident_bytes(pid) for pid in found)
        return seen.io_bytes, seen.memory_bytes

    def last_entry(self, backend: str, invocation: str, now: float) -> int:
        """When journald took the last line of this invocation (µs since the epoch), as known so far."""
        seen = self._seen.get(backend)
        if seen is None or not invocation:
            return 0
        if now - seen.asked_at >= _JOURNAL_S and not seen.asking:
            seen.asked_at, seen.asking = now, True
            aside(_ask, seen, invocation, name="efforts")
        return seen.last_entry


def _ask(seen: _Seen, invocation: str) -> None:
    journalctl = tool("journalctl") or "/usr/bin/journalctl"
    command = [journalctl, "--no-pager", "-q", "-n", "1", "-o", "json", "--output-fields=_PID"]
    try:
        done = subprocess.run(
            [*command, f"_SYSTEMD_INVOCATION_ID={invocation}"],
            check=False,
            capture_output=True,
            timeout=_ANSWER_S,
        )
        if done.stdout:
            seen.last_entry = int(json.loads(done.stdout)["__REALTIME_TIMESTAMP"])
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return  # a journal that does not answer is no sign of anything
    finally:
        seen.asking = False
