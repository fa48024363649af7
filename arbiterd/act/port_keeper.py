"""Keeps the rule of the engine ports in force. `flush ruleset` and a restart of firewalld or of
nftables.service remove it in silence, so it is looked at and loaded anew each minute, in one transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from arbiterd import aside
from arbiterd.act.port_unit import FILE, Applied
from arbiterd.errors import LaunchError
from arbiterd.gateway.port_rules import engine_ports, text
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.published import PortGuard
from arbiterd.model.settings import Settings
from arbiterd.store import atomic

EVERY_S = 60.0
AGAIN_S = 10.0  # after a failure: nftables may be installed meanwhile
FIRST_S = 5.0


class Unit(Protocol):
    """What loads the rule (act/port_unit.py)."""

    def users(self) -> frozenset[int]:
        """Who may open engine ports beside root."""

    def apply(self) -> Applied:
        """Load the rule."""

    def remove(self) -> None:
        """Take it away."""

    def close(self) -> None:
        """Let go."""


@dataclass(frozen=True, slots=True)
class _Order:
    ports: frozenset[int]
    closed: bool = False


class PortKeeper:
    """``order``, ``latest`` and ``said`` are the loop's and never wait; a thread does. Without a ``unit``
    there is no rule, and ``why`` says what for.
    """

    def __init__(
        self,
        file: Path,
        unit: Unit | None,
        why: str,
        on_change: Callable[[], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._file = file
        self._unit = unit
        self._why = why
        self._on_change = on_change
        self._every_s = every_s
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._order = _Order(frozenset())
        self._settings: Settings | None = None
        self._switching = False
        self._first = threading.Event()
        self._events: list[Event] = []
        self._latest = PortGuard(problem=why)
        self._thread = aside.thread(self._run, name="ports")

    def first(self, settings: Settings) -> PortGuard:
        """Begin, and wait shortly for the first outcome: what is started depends on it."""
        self.order(settings, switching=False)
        if self._unit is not None:
            self._thread.start()
            self._first.wait(FIRST_S)
        return self._latest

    def order(self, settings: Settings, *, switching: bool) -> None:
        """These engines' ports. While a switch is under way those of before stay with them."""
        if settings is self._settings and switching is self._switching:
            return
        with self._lock:
            self._switching = switching
            wanted = frozenset() if refusal(settings) else engine_ports(settings)
            if switching:
                wanted |= self._order.ports
            self._settings = settings
            if wanted == self._order.ports:
                return
            self._order = _Order(wanted)
        self._wake.set()

    def latest(self) -> PortGuard:
        """The newest outcome."""
        return self._latest

    def said(self) -> tuple[Event, ...]:
        """What is to be told, each once."""
        if not self._events:
            return ()
        with self._lock:
            out, self._events = tuple(self._events), []
            return out

    def stop(self) -> None:
        """The end of a stop: the engines are gone, and the rule goes."""
        self.close()
        if self._unit is not None:
            try:
                self._unit.remove()
            except LaunchError as error:
                self._tell(Severity.WARNING, f"the rule of the engine ports stays: {error}")

    def close(self) -> None:
        """Let the thread end; the rule stays in force."""
        with self._lock:
            self._order = _Order(self._order.ports, closed=True)
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(FIRST_S)

    # -- the thread ----------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            with self._lock:
                order = self._order
            if order.closed:
                break
            before = self._latest
            now = self._turn(order.ports)
            self._report(before, now)
            self._latest = now
            self._first.set()
            if now != before:
                self._on_change()
            self._wake.wait(min(AGAIN_S, self._every_s) if now.problem else self._every_s)
            self._wake.clear()

    def _turn(self, ports: frozenset[int]) -> PortGuard:
        unit = self._unit
        if unit is None or not ports:
            return self._off(unit)
        try:
            atomic.write(self._file, text(ports, unit.users()).encode(), mode=0o600)
            if str(self._file) != FILE:
                done = Applied(f"its unit loads {FILE}, and runtime_dir is {self._file.parent}")
            else:
                done = unit.apply()
        except (LaunchError, OSError) as error:
            done = Applied(str(error))
        except Exception as error:  # noqa: BLE001 - a thread root: the keeper must not die
            done = Applied(f"bug: {type(error).__name__}: {error}")
        if done.gone and not done.problem:
            what = "nft flush ruleset, or a restart of firewalld or nftables.service, removes it"
            self._tell(
                Severity.WARNING, f"the rule of the engine ports was gone, and is back; {what}"
            )
        return PortGuard(closed=not done.problem, ports=tuple(sorted(ports)), problem=done.problem)

    def _off(self, unit: Unit | None) -> PortGuard:
        """No doors, or every local user is trusted: a rule of before goes."""
        if unit is not None and (self._latest.ports or self._file.exists()):
            try:
                unit.remove()
                self._file.unlink(missing_ok=True)
            except (LaunchError, OSError):
                pass  # a rule too many harms nobody's engine; the next turn tries again
        settings = self._settings
        return PortGuard(problem=refusal(settings) if settings else self._why)

    def _report(self, before: PortGuard, now: PortGuard) -> None:
        if now.problem and now.ports and now.problem != before.problem:
            ports = ", ".join(map(str, now.ports))
            self._tell(
                Severity.WARNING, f"any local user can open the engine ports {ports}: {now.problem}"
            )
        elif now.closed and before.problem and before.ports:
            self._tell(Severity.INFO, "the engine ports are closed to local users again")

    def _tell(self, severity: Severity, message: str) -> None:
        with self._lock:
            self._events.append(Event(EventName.PORTS_OPEN, severity, message))


def refusal(settings: Settings) -> str:
    """Why the file alone wants no rule, "" when it wants one."""
    if settings.arbiter.local_users == "trusted":
        return '[arbiter] local_users = "trusted"'
    if not settings.gateway.enabled:
        return "without the gateway the engines have the public ports themselves"
    return ""
