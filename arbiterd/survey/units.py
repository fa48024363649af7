"""Units as systemd itself tells of them, over D-Bus: typed values, no text to take apart.

Unit files are never parsed here: a drop-in, a generator or an alias changes what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jeepney import DBusAddress

from arbiterd.act.systemd_bus import NAME, PATH, SERVICE, UNIT, Bus
from arbiterd.errors import LaunchError
from arbiterd.survey.facts import OURS, UnitFacts, UserUnit, engine_of_unit

PATTERNS = ("*ollama*.service", "*vllm*.service", "*tensorflow*.service", "*tf*serving*.service")
_MANAGER = DBusAddress(PATH, NAME, f"{NAME}.Manager")
_PROPERTIES = "org.freedesktop.DBus.Properties"


class Units:
    """Questions to systemd. Everything raises LaunchError when the bus cannot be reached."""

    def __init__(self) -> None:
        self._bus = Bus()

    def close(self) -> None:
        """Let go of the connection."""
        self._bus.close()

    def show(self, name: str) -> UnitFacts:
        """One unit, loaded or not; ``load`` is 'not-found' when systemd knows no file for it.

        Raises:
            LaunchError: systemd does not answer, or the name is no unit's name.

        """
        path = str(self._bus.call(_MANAGER, "LoadUnit", "s", (name,))[0])
        unit = self._all(path, UNIT)
        service = self._all(path, SERVICE) if name.endswith(".service") else {}
        execs = service.get("ExecStart") or [("", [])]
        pairs = [str(one).partition("=") for one in service.get("Environment", [])]
        return UnitFacts(
            name=str(unit.get("Id", name)),
            load=str(unit.get("LoadState", "")),
            active=str(unit.get("ActiveState", "")),
            enabled=str(unit.get("UnitFileState", "")),
            fragment=str(unit.get("FragmentPath", "")),
            drop_ins=tuple(str(one) for one in unit.get("DropInPaths", [])),
            user=str(service.get("User", "")),
            group=str(service.get("Group", "")),
            environment=tuple((key, value) for key, _, value in pairs),
            environment_files=tuple(
                (str(path), bool(optional))
                for path, optional in service.get("EnvironmentFiles", [])
            ),
            command=tuple(str(word) for word in execs[0][1]),
            main_pid=int(service.get("MainPID", 0)),
        )

    def of_engines(self, named: Iterable[str] = ()) -> tuple[UnitFacts, ...]:
        """Foreign units that run a known engine, installed or loaded; ours are left out. ``named``:
        units to look at although their name says nothing.
        """
        files = self._bus.call(_MANAGER, "ListUnitFilesByPatterns", "asas", ([], list(PATTERNS)))[0]
        names = {os.path.basename(str(path)) for path, _ in files}
        names |= {one for one in named if one.endswith(".service")}
        for pattern in PATTERNS:
            names |= {name for name, _ in self._bus.list_units(pattern)}
        found: dict[str, UnitFacts] = {}
        for name in sorted(names):
            if name.startswith(OURS) or "@." in name:
                continue  # a template is no unit
            with suppress(LaunchError):
                unit = self.show(name)
                if unit.there and engine_of_unit(unit) is not None:
                    found[unit.name] = unit
        return tuple(found.values())

    def _all(self, path: str, interface: str) -> dict[str, Any]:
        address = DBusAddress(path, NAME, _PROPERTIES)
        rows = self._bus.call(address, "GetAll", "s", (interface,))[0]
        return {str(key): value[1] for key, value in rows.items()}


def of_people(homes: tuple[str, ...]) -> Iterator[UserUnit]:
    """Engines' units that are enabled in a person's own manager (~/.config/systemd/user).

    Each person's manager has a bus of its own, shut to others: the links that `enable` makes tell.
    """
    for home in homes:
        links = Path(home, ".config/systemd/user")
        with suppress(OSError):
            for link in sorted(links.glob("*.wants/*.service")):
                if any(word in link.name for word in ("ollama", "vllm", "tensorflow")):
                    user = link.lstat().st_uid
                    name = _login(user)
                    linger = os.path.exists(f"/var/lib/systemd/linger/{name}")
                    yield UserUnit(link.name, name, linger)


def _login(uid: int) -> str:
    import pwd  # noqa: PLC0415 - nss may load libraries; only those who ask pay

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
