"""What the direct launcher knows of a started backend, in memory and on disk."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from arbiterd.act.launch.process_owner import Roots
from arbiterd.model.devices import ProcessRef
from arbiterd.model.launch import Exit


@dataclass(slots=True)
class Record:
    """What is known of one started backend; kept on disk for adoption."""

    backend: str
    pid: int
    start_time: int
    boot_id: str
    invocation: str
    intent: str
    started_wall: float
    container: str = ""
    warden_pid: int = 0
    warden_start: int = 0

    @property
    def roots(self) -> Roots:
        """Its main process and its warden."""
        main = ProcessRef(self.pid, self.start_time)
        return Roots(main, ProcessRef(self.warden_pid, self.warden_start))


@dataclass(slots=True)
class Running:
    """A backend in memory. ``process``: its warden, None when an earlier daemon started it."""

    record: Record
    since: float
    process: subprocess.Popen[bytes] | None
    pidfd: int
    exit: Exit | None = None
    stopping: bool = False
    members: tuple[ProcessRef, ...] = ()
    scanned: float = 0.0
