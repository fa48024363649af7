"""Units as systemd itself tells of them, over D-Bus: typed values, no text to take apart.

No value is taken from a unit's text: a drop-in, a generator or an alias changes what it means. Only
the names of what it sets are read there, for the list of what is not carried over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jeepney import DBusAddress

from arbiterd.config.vllm_config import config_of
from arbiterd.errors import LaunchError
from arbiterd.files import env_text
from arbiterd.linux.systemd_bus import NAME, PATH, SERVICE, UNIT, Bus
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.survey import unit_line
from arbiterd.survey.facts import OURS, UnitFacts, UserUnit, engine_of_unit, starts_engine

PATTERNS = ("*ollama*.service", "*vllm*.service", "*tensorflow*.service", "*tf*serving*.service")
_MANAGER = DBusAddress(PATH, NAME, f"{NAME}.Manager")
_FOLDERS = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
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
        environment = tuple((key, value) for key, _, value in pairs)
        files = tuple((str(p), bool(o)) for p, o in service.get("EnvironmentFiles", []))
        line, in_files = _expanded([str(word) for word in execs[0][1]], environment, files, service)
        fragment = str(unit.get("FragmentPath", ""))
        drop_ins = tuple(str(one) for one in unit.get("DropInPaths", []))
        return UnitFacts(
            name=str(unit.get("Id", name)),
            load=str(unit.get("LoadState", "")),
            active=str(unit.get("ActiveState", "")),
            enabled=str(unit.get("UnitFileState", "")),
            fragment=fragment,
            drop_ins=drop_ins,
            user=str(service.get("User", "")),
            group=str(service.get("Group", "")),
            environment=environment,
            environment_files=files,
            command=line.words,
            main_pid=int(service.get("MainPID", 0)),
            missing=line.missing,
            secret=line.secret,
            directives=unit_line.directives(_texts((fragment, *drop_ins))),
            in_files=in_files,
            config=config_of(BackendSettings("x", Kind.VLLM, line.words, 1, 1)),
        )

    def of_engines(self, named: Iterable[str] = ()) -> tuple[UnitFacts, ...]:
        """Foreign units that run a known engine, installed or loaded; ours are left out. ``named``:
        units to look at although their name says nothing.
        """
        files = self._bus.call(_MANAGER, "ListUnitFilesByPatterns", "asas", ([], list(PATTERNS)))[0]
        names = {os.path.basename(str(path)) for path, _ in files}
        names |= {one for one in named if one.endswith(".service")}
        names |= set(_by_text(_FOLDERS))
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

    def templates(self) -> tuple[str, ...]:
        """Engines' templates (``vllm@.service``) of which no instance is loaded."""
        files = self._bus.call(_MANAGER, "ListUnitFilesByPatterns", "asas", ([], list(PATTERNS)))[0]
        names = {os.path.basename(str(path)) for path, _ in files}
        idle = [one for one in sorted(names) if one.endswith("@.service") and OURS not in one]
        return tuple(
            one
            for one in idle
            if not self._bus.list_units(f"{one.removesuffix('.service')}*.service")
        )

    def _all(self, path: str, interface: str) -> dict[str, Any]:
        address = DBusAddress(path, NAME, _PROPERTIES)
        rows = self._bus.call(address, "GetAll", "s", (interface,))[0]
        return {str(key): value[1] for key, value in rows.items()}


def _expanded(
    words: list[str],
    environment: tuple[tuple[str, str], ...],
    files: tuple[tuple[str, bool], ...],
    service: dict[str, Any],
) -> tuple[unit_line.Expanded, frozenset[str]]:
    """(the command with its variables, what the files set): files win over Environment=, as for
    systemd.
    """
    said: dict[str, str] = {}
    complete = True
    for path, optional in files:
        try:
            said |= env_text.parse(Path(path).read_text(errors="replace"))
        except FileNotFoundError:
            complete = complete and optional  # else systemd would refuse the start
        except OSError:
            complete = False
    flags = (service.get("ExecStartEx") or [("", [], [])])[0][2]
    if "no-env-expand" in flags:  # ExecStart=:/path ...
        return unit_line.Expanded(tuple(words)), frozenset(said)
    env = dict(environment) | said
    return unit_line.expanded(words, env, complete=complete), frozenset(said)


def _by_text(folders: Iterable[str]) -> Iterator[str]:
    """Units of any name whose text starts an engine; what they really start is asked of systemd."""
    for folder in folders:
        for path in sorted(Path(folder).glob("*.service")):
            with suppress(OSError):
                if starts_engine(path.read_text(errors="replace")):
                    yield path.name


def _texts(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        with suppress(OSError):
            yield Path(path).read_text(errors="replace")


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
