"""gpu-arbiter-ports.service, which loads the rule of the engine ports: started, reloaded, asked what came
of it. The daemon itself has no capability for it, so the unit's own commands are the only look there is.
"""

from __future__ import annotations

import pwd
import time
from dataclasses import dataclass
from typing import Any

from arbiterd.act.launch.output import journal_tail
from arbiterd.errors import LaunchError
from arbiterd.linux.systemd_bus import NAME, SERVICE, UNIT, Bus, BusError

PORTS = "gpu-arbiter-ports.service"
FILE = "/run/gpu-arbiter/ports.nft"  # what the unit loads
DOORS = ("gpu-arbiter-gateway.service", "gpu-arbiter-gate.service")
_JOB_S = 20.0
_POLL_S = 0.02
_EXITED = 1
_NOT_EXECUTED = 203


@dataclass(frozen=True, slots=True)
class Applied:
    """``problem``: why the rule is not in force, "" when it is. ``gone``: it had been removed."""

    problem: str = ""
    gone: bool = False


class PortUnit:
    """By the system's manager; every method may wait, and raises LaunchError."""

    def __init__(self) -> None:
        self._bus = Bus()

    def users(self) -> frozenset[int]:
        """The uids of HAProxy and the load gate, as their units name them.

        Raises:
            LaunchError: one of them is not there: the rule would shut the doors.

        """
        out = set()
        for unit in DOORS:
            user = str(self._bus.get(self._load(unit), SERVICE, "User")) or "root"
            try:
                out.add(int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid)
            except KeyError:
                msg = f"there is no user {user!r} of {unit}; make install"
                raise LaunchError(msg) from None
        return frozenset(out)

    def apply(self) -> Applied:
        """Load the rule anew, in one transaction; the unit first looks whether it is still there."""
        path = self._load(PORTS)
        if self._bus.get(path, UNIT, "LoadState") != "loaded":
            return Applied(f"{PORTS} is not installed; make install")
        ran = self._bus.get(path, UNIT, "ActiveState") == "active"
        self._wait(self._bus.manage("ReloadOrRestartUnit", PORTS))
        if not ran:
            return self._started(path)
        look, load = (_status(row) for row in self._bus.get(path, SERVICE, "ExecReload"))
        return Applied(self._why(path, load) if load else "", gone=look != 0)

    def remove(self) -> None:
        """Stop the unit: its last command deletes the table."""
        try:
            self._wait(self._bus.stop(PORTS))
        except BusError as error:
            if not error.no_such_unit:
                raise

    def close(self) -> None:
        """Let go of the connection; the rule stays."""
        self._bus.close()

    def _started(self, path: str) -> Applied:
        if self._bus.get(path, UNIT, "ActiveState") == "active":
            return Applied()
        status = int(self._bus.get(path, SERVICE, "ExecMainStatus"))
        why = self._why(path, status)
        self._bus.reset_failed(PORTS)
        return Applied(why)

    def _why(self, path: str, status: int) -> str:
        if status == _NOT_EXECUTED:
            return "nft cannot be run; apt-get install nftables"
        invocation = bytes(self._bus.get(path, UNIT, "InvocationID")).hex()
        said = [line for line in journal_tail(PORTS, invocation, 8) if line.strip(" ^~")]
        return f"nft ended with status {status}: {' '.join(said)[:200] or f'journalctl -u {PORTS}'}"

    def _load(self, unit: str) -> str:
        return str(self._bus.call_manager("LoadUnit", "s", (unit,))[0])

    def _wait(self, job: str) -> None:
        deadline = time.monotonic() + _JOB_S
        try:
            while time.monotonic() < deadline:
                self._bus.get(job, f"{NAME}.Job", "State")
                time.sleep(_POLL_S)
        except BusError as error:
            if not error.no_such_unit:
                raise


def _status(row: tuple[Any, ...]) -> int:
    """The exit status of one command of a unit: (path, argv, ignore, four times, pid, code, status)."""
    code, status = int(row[8]), int(row[9])
    return status if code == _EXITED else max(status, 1)
