"""Is a unit of ours over? Asked of systemd and of the cgroup, again and again, while it is stopped."""

from __future__ import annotations

import signal
from contextlib import suppress

from arbiterd.act.launch.base import signal_exactly
from arbiterd.act.launch.containers import Containers
from arbiterd.linux import procfs
from arbiterd.linux.cgroups import pids_of
from arbiterd.linux.systemd_bus import SERVICE, UNIT, Bus, BusError


class UnitEnd:
    """Questions about the end of a unit, and the signal that brings it about."""

    def __init__(self, bus: Bus, containers: Containers) -> None:
        self._bus = bus
        self._containers = containers

    def active(self, unit: str) -> bool:
        """Whether its main process can still be told to stop."""
        try:
            path = self._bus.unit_path(unit)
            return bool(self._bus.get(path, SERVICE, "MainPID"))
        except BusError:
            return False

    def tidying(self, unit: str, backend: str) -> bool:
        """Whether all that is left of it is podman, removing the dead container (ExecStopPost=)."""
        try:
            path = self._bus.unit_path(unit)
            last = str(self._bus.get(path, UNIT, "SubState")) == "stop-post"
        except BusError:
            return False
        return last and not self._containers.pids(backend)

    def alive(self, unit: str, backend: str) -> bool:
        """Whether the unit is on its way down or anything lives in its cgroup or container."""
        if self._containers.pids(backend):
            return True
        try:
            path = self._bus.unit_path(unit)
            active = str(self._bus.get(path, UNIT, "ActiveState"))
            cgroup = str(self._bus.get(path, SERVICE, "ControlGroup"))
        except BusError:
            return False
        try:
            return active not in ("inactive", "failed") or bool(pids_of(cgroup))
        except OSError:  # no descriptor is left: it is there as long as nothing says otherwise
            return True

    def kill_all(self, unit: str) -> None:
        """SIGKILL to the whole cgroup. The podman that removes the dead container (ExecStopPost=) is
        spared: killed, it would leave the container and its name behind.
        """
        with suppress(BusError):
            if not self._kill_podmans(unit):
                self._bus.kill(unit, "all", signal.SIGKILL)

    def _kill_podmans(self, unit: str) -> bool:
        """Whether it is podman's (only its cgroup is delegated) and the signals were sent. Listed before
        systemd is asked: what runs at stop-post is started after that, or the answer tells of it.
        """
        path = self._bus.unit_path(unit)
        if not self._bus.get(path, SERVICE, "Delegate"):
            return False
        try:
            listed = pids_of(str(self._bus.get(path, SERVICE, "ControlGroup")))
            found = [ref for pid in listed if (ref := procfs.ref(pid)) is not None]
        except OSError:  # no descriptor is left
            return False
        if str(self._bus.get(path, UNIT, "SubState")) != "stop-post":
            for ref in found:
                signal_exactly(ref, signal.SIGKILL)
        return True
