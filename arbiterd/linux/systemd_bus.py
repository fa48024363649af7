"""systemd over D-Bus, as little of it as we need: one connection for calls, one for signals.

jeepney is pure Python and blocking: nothing to compile on a GPU host, no second event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from jeepney import DBusAddress, MessageType, Properties, new_method_call
from jeepney.bus_messages import MatchRule, message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.low_level import HeaderFields, Message

from arbiterd import aside
from arbiterd.errors import LaunchError

NAME = "org.freedesktop.systemd1"
PATH = "/org/freedesktop/systemd1"
UNIT = f"{NAME}.Unit"
SERVICE = f"{NAME}.Service"
_CALL_S = 25.0
_RECEIVE_S = 1.0
_MANAGER = DBusAddress(PATH, NAME, f"{NAME}.Manager")
Property = tuple[str, tuple[str, Any]]


class BusError(LaunchError):
    """systemd said no. ``name`` is the D-Bus error name."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        super().__init__(text)

    @property
    def no_such_unit(self) -> bool:
        """The unit is not there (any more)."""
        return self.name.endswith(("NoSuchUnit", "NoSuchJob", "UnknownObject"))


class Bus:
    """Calls, from any thread, one at a time. Reconnects when the bus was restarted."""

    def __init__(self, call_s: float = _CALL_S) -> None:
        self._call_s = call_s
        self._lock = threading.Lock()
        self._connection: DBusConnection | None = None
        self._closed = False

    def close(self) -> None:
        """Let go of the connection, for good: a thread still at work gets an error, no new one."""
        with self._lock:
            self._closed = True
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None

    def call(
        self, address: DBusAddress, method: str, signature: str = "", body: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """One method call.

        Raises:
            BusError: systemd answers with an error.
            LaunchError: the bus cannot be reached.
        """
        message = new_method_call(address, method, signature or None, body)
        return self._send(message)

    def _send(self, message: Message) -> tuple[Any, ...]:
        with self._lock:
            for again in (True, False):
                if self._closed:
                    msg = "this connection to systemd is closed"
                    raise LaunchError(msg)
                try:
                    if self._connection is None:
                        self._connection = open_dbus_connection(bus="SYSTEM")
                    reply = self._connection.send_and_get_reply(message, timeout=self._call_s)
                    break
                except (OSError, EOFError, TimeoutError) as error:
                    self._drop()
                    if isinstance(error, TimeoutError) or not again:
                        msg = f"cannot reach systemd over D-Bus: {error or 'no answer'}"
                        raise LaunchError(msg) from None
        if reply.header.message_type is MessageType.error:
            name = str(reply.header.fields.get(HeaderFields.error_name, ""))
            text = str(reply.body[0]) if reply.body else name
            raise BusError(name, text)
        return tuple(reply.body)

    def call_manager(self, method: str, signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
        """A method of the manager. Raises as ``call``."""
        return self.call(_MANAGER, method, signature, body)

    def version(self) -> str:
        """systemd's own: '252.38-1~deb12u1'."""
        return str(self.get(PATH, f"{NAME}.Manager", "Version"))

    def get(self, path: str, interface: str, name: str) -> Any:
        """One property."""
        address = DBusAddress(path, NAME, interface)
        return self._send(Properties(address).get(name))[0][1]

    def unit_path(self, unit: str) -> str:
        """Object path of a loaded unit."""
        return str(self.call(_MANAGER, "GetUnit", "s", (unit,))[0])

    def list_units(self, pattern: str) -> list[tuple[str, str]]:
        """(name, object path) of loaded units."""
        rows = self.call(_MANAGER, "ListUnitsByPatterns", "asas", ([], [pattern]))[0]
        return [(str(row[0]), str(row[6])) for row in rows]

    def start_transient(
        self,
        unit: str,
        properties: Sequence[Property],
        aux: Sequence[tuple[str, Sequence[Property]]] = (),
    ) -> str:
        """Start; returns the job's path. ``aux``: units made with it (a timer's service)."""
        others = [(name, list(of)) for name, of in aux]
        body: tuple[Any, ...] = (unit, "fail", list(properties), others)
        return str(self.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)[0])

    def stop(self, unit: str) -> str:
        """Stop; returns the job's path."""
        return str(self.call(_MANAGER, "StopUnit", "ss", (unit, "replace"))[0])

    def manage(self, method: str, unit: str) -> str:
        """StartUnit, ReloadOrRestartUnit, StopUnit; returns the job's path."""
        return str(self.call(_MANAGER, method, "ss", (unit, "replace"))[0])

    def kill(self, unit: str, who: str, number: int) -> None:
        """A signal to 'main' or 'all' processes of a unit."""
        self.call(_MANAGER, "KillUnit", "ssi", (unit, who, number))

    def reset_failed(self, unit: str) -> None:
        """Forget a failed unit."""
        with suppress(BusError):
            self.call(_MANAGER, "ResetFailedUnit", "s", (unit,))


class Signals:
    """The signal connection: calls ``on_signal(path, member, body)`` from its thread.

    ``on_connect`` runs after each (re)connection: everything may have changed meanwhile.
    """

    def __init__(
        self, on_signal: Callable[[str, str, tuple[Any, ...]], None], on_connect: Callable[[], None]
    ) -> None:
        self._on_signal = on_signal
        self._on_connect = on_connect
        self._closed = threading.Event()
        self._thread = aside.thread(self._run, name="systemd")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join(timeout=_RECEIVE_S * 2)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with open_dbus_connection(bus="SYSTEM") as connection:
                    self._follow(connection)
            except (OSError, EOFError, LaunchError):
                self._closed.wait(_RECEIVE_S)

    def _follow(self, connection: DBusConnection) -> None:
        connection.send(new_method_call(_MANAGER, "Subscribe"))
        for rule in (
            MatchRule(type="signal", sender=NAME, interface="org.freedesktop.DBus.Properties"),
            MatchRule(type="signal", sender=NAME, interface=f"{NAME}.Manager"),
        ):
            if rule.header_fields.get("interface", "").endswith("Properties"):
                rule.add_arg_condition(0, SERVICE)
            connection.send(message_bus.AddMatch(rule))
        self._on_connect()
        while not self._closed.is_set():
            try:
                message = connection.receive(timeout=_RECEIVE_S)
            except TimeoutError:
                continue
            if message.header.message_type is MessageType.signal:
                fields = message.header.fields
                path = str(fields.get(HeaderFields.path, ""))
                member = str(fields.get(HeaderFields.member, ""))
                self._on_signal(path, member, tuple(message.body))
