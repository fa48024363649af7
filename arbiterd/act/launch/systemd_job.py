"""What systemd is doing with our own unit: stop or restart? Nothing else tells (facts/systemd.md)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Literal

from arbiterd.act.launch.containers import SLICE
from arbiterd.act.launch.freezer import thaw_all
from arbiterd.errors import LaunchError
from arbiterd.linux import procfs
from arbiterd.linux.systemd_bus import NAME, UNIT, Bus, BusError

Job = Literal["stop", "restart", "start", "none"]


def own_job() -> Job:
    """The job of the unit this process lives in.

    'none' when there is no job (a kill, a crash) or when nobody can be asked: then engines go on.
    """
    unit = procfs.unit_of(os.getpid())
    if not unit.endswith(".service"):
        return "none"
    bus = Bus()
    try:
        path = bus.unit_path(unit)
        number, job_path = bus.get(path, UNIT, "Job")
        if not number:
            return "none"
        found = str(bus.get(job_path, f"{NAME}.Job", "JobType"))
    except LaunchError:
        return "none"
    finally:
        bus.close()
    if found == "stop":
        return "stop"
    return "restart" if found.endswith("restart") else "start"


def stop_slice() -> None:
    """Stop every engine at once, by their slice; then the doors. Thawed first: newer systemds refuse
    to stop what is frozen.
    """
    thaw_all()
    bus = Bus()
    try:
        with suppress(BusError):
            bus.stop(SLICE)
        for name in ("gateway", "gate", "ports"):
            with suppress(BusError):
                bus.stop(f"gpu-arbiter-{name}.service")
    finally:
        bus.close()
