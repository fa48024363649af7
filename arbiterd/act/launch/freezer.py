"""Freezing a unit's cgroup for a moment: what thaws it again is armed first, and outside of us.

A frozen unit stays so whatever happens to who froze it (facts/systemd.md, 9). Before each freeze a
transient timer of systemd's is started that thaws; then we freeze, wait, thaw, and take the timer
back. A stop thaws first and keeps freezes out: systemd 257 refuses to stop a frozen unit.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from arbiterd.errors import LaunchError
from arbiterd.files.trust import tool
from arbiterd.linux.cgroups import folder_of, frozen_of
from arbiterd.linux.systemd_bus import SERVICE, UNIT, Bus, BusError, Property

PREFIX, SUFFIX = "gpu-arbiter-backend-", ".service"
THAW_PREFIX = "gpu-arbiter-thaw-"
SINCE = 246  # FreezeUnit; the cgroup freezer is v2's
MARGIN_S = 0.25  # the timer comes this much after our own thaw
LONGEST_S = 2.0  # beyond it clients' and servers' own deadlines begin to fall
_CALL_S = 1.0  # it takes 8 ms, save with a process in state D, which cannot be frozen
_THAW_S = 2.0
_POLL_S = 0.002  # a brake: at 4 GiB/s a millisecond is 4 MiB


class Freezer:
    """Freezes and thaws units. Any thread; each call uses a connection of its own, so that a freeze
    that hangs (state D) holds up nobody's stop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ending: list[str] = []
        self._cut: dict[str, threading.Event] = {}
        self._busy: dict[str, threading.Lock] = {}
        self.supported = _supported()

    def freeze(self, backend: str, for_s: float) -> None:
        """Freeze for ``for_s`` seconds (at most LONGEST_S); returns when it is thawed.

        Raises:
            LaunchError: it cannot be frozen, is being stopped, or does not thaw.

        """
        unit = f"{PREFIX}{backend}{SUFFIX}"
        with self._lock:
            busy = self._busy.setdefault(unit, threading.Lock())
        with busy, closing(Bus(_CALL_S)) as bus:
            cut = threading.Event()
            with self._lock:
                if unit in self._ending:
                    msg = f"cannot freeze {backend}: it is being stopped"
                    raise LaunchError(msg)
                self._cut[unit] = cut
            try:
                self._freeze(bus, backend, unit, cut, min(for_s, LONGEST_S))
            finally:
                with self._lock:
                    self._cut.pop(unit, None)

    def _freeze(
        self, bus: Bus, backend: str, unit: str, cut: threading.Event, for_s: float
    ) -> None:
        arm(bus, backend, for_s + MARGIN_S)
        until = time.monotonic() + for_s
        try:
            if not cut.is_set():
                bus.call_manager("FreezeUnit", "s", (unit,))
                cut.wait(max(0.0, until - time.monotonic()))
        except LaunchError as error:
            msg = f"cannot freeze {backend}: systemd says: {error}"
            raise LaunchError(msg) from None
        finally:
            thaw(unit)
        disarm(bus, backend)  # only now: should the thaw have failed, the timer tries once more

    @contextmanager
    def ending(self, backend: str) -> Iterator[None]:
        """For a stop: thaws, and keeps freezes out until its end."""
        unit = f"{PREFIX}{backend}{SUFFIX}"
        with self._lock:
            self._ending.append(unit)
            cut = self._cut.get(unit)
            busy = self._busy.setdefault(unit, threading.Lock())
        try:
            if cut is not None:
                cut.set()
            # A freeze under way ends at once, by its own thaw. What cannot be thawed is killed as it is.
            with busy, suppress(LaunchError):
                thaw(unit)
            yield
        finally:
            with self._lock:
                self._ending.remove(unit)


def _supported() -> bool:
    """Whether this systemd freezes: a version that can, on a unified hierarchy with a freezer."""
    # Asked once, so with patience: a systemd that is slow at boot can freeze all the same.
    with closing(Bus()) as bus, suppress(LaunchError, ValueError):
        version = int("".join(c if c.isdigit() else " " for c in bus.version()).split()[0])
        slice_ = folder_of("/init.scope")
        return version >= SINCE and slice_ is not None and (slice_ / "cgroup.freeze").exists()
    return False


def thaw(unit: str) -> None:
    """Thaw a unit; one that is not frozen, or not there, is fine.

    Raises:
        LaunchError: it stays frozen.

    """
    said = ""
    deadline = time.monotonic() + _THAW_S
    with closing(Bus(_CALL_S)) as bus:
        while True:
            try:
                bus.call_manager("ThawUnit", "s", (unit,))
            except BusError as error:
                if error.no_such_unit:
                    return
                said = str(error)
            except LaunchError as error:
                said = str(error)
            if not _is_frozen(bus, unit):
                return
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
    msg = f"cannot thaw {unit}: systemd says: {said or 'done, but it stays frozen'}"
    raise LaunchError(msg)


def thaw_all() -> list[str]:
    """Thaw whatever of ours is frozen, by unit name; returns the errors."""
    problems: list[str] = []
    with closing(Bus(_CALL_S)) as bus:
        try:
            found = bus.list_units(f"{PREFIX}*{SUFFIX}")
        except LaunchError as error:
            return [str(error)]
        for unit, _ in found:
            if _is_frozen(bus, unit):
                try:
                    thaw(unit)
                except LaunchError as error:
                    problems.append(str(error))
    return problems


def _is_frozen(bus: Bus, unit: str) -> bool:
    """Frozen, or on the way there, for systemd or for the kernel."""
    try:
        path = bus.unit_path(unit)
        if str(bus.get(path, UNIT, "FreezerState")) in ("frozen", "freezing"):
            return True
        return frozen_of(str(bus.get(path, SERVICE, "ControlGroup")))
    except BusError:
        return False
    except LaunchError:
        return True


def arm(bus: Bus, backend: str, after_s: float) -> None:
    """A timer of systemd's that thaws ``after_s`` from now; returns when it waits.

    Raises:
        LaunchError: it cannot be had: then nothing may be frozen.

    """
    unit, name = f"{PREFIX}{backend}{SUFFIX}", f"{THAW_PREFIX}{backend}"
    disarm(bus, backend)
    systemctl = tool("systemctl") or "/usr/bin/systemctl"
    commands = [(systemctl, [systemctl, "thaw", unit], True)]
    cgroup = folder_of(_cgroup(bus, unit))
    if cgroup is not None:
        # systemd thaws nothing that has a job ("Unit has a pending job"): the kernel does.
        line = f"echo 0 > {shlex.quote(str(cgroup / 'cgroup.freeze'))}"
        commands.append(("/bin/sh", ["/bin/sh", "-c", line], True))
    timer: list[Property] = [
        ("Description", ("s", f"thaws gpu-arbiter backend {backend}")),
        ("TimersMonotonic", ("a(st)", [("OnActiveSec", round(after_s * 1e6))])),
        ("AccuracyUSec", ("t", 1000)),
        ("RemainAfterElapse", ("b", False)),
    ]
    service: list[Property] = [
        ("Description", ("s", f"thaw gpu-arbiter backend {backend}")),
        ("Type", ("s", "oneshot")),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("ExecStart", ("a(sasb)", commands)),
    ]
    deadline = time.monotonic() + _THAW_S
    while True:
        try:
            bus.start_transient(f"{name}.timer", timer, [(f"{name}.service", service)])
        except BusError as error:
            # The last one's service may still be at work, or not be collected yet.
            if not error.name.endswith("UnitExists") or time.monotonic() >= deadline:
                msg = f"cannot freeze {backend}: no timer to thaw it: systemd says: {error}"
                raise LaunchError(msg) from None
            time.sleep(_POLL_S)
            continue
        break
    while _sub_state(bus, f"{name}.timer") != "waiting":
        if time.monotonic() >= deadline:
            msg = f"cannot freeze {backend}: {name}.timer does not start"
            raise LaunchError(msg)
        time.sleep(_POLL_S)


def disarm(bus: Bus, backend: str) -> None:
    """Take the timer back; none is fine."""
    with suppress(BusError):
        bus.stop(f"{THAW_PREFIX}{backend}.timer")


def _sub_state(bus: Bus, unit: str) -> str:
    with suppress(BusError):
        return str(bus.get(bus.unit_path(unit), UNIT, "SubState"))
    return ""


def _cgroup(bus: Bus, unit: str) -> str:
    with suppress(BusError):
        return str(bus.get(bus.unit_path(unit), SERVICE, "ControlGroup"))
    return ""
