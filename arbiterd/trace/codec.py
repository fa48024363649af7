"""Traces: what sense saw and what core decided, tick by tick, as JSON lines; and their replay.

The first line carries the settings and core's state before the first tick, each further line what
has changed since the one before. Values are written with the names of their classes: some actions
have the same fields, and core's state has keys that are no text, so the types of the fields alone do
not tell what to build (docs/traces.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import lru_cache
from importlib import import_module
from typing import Any, Never, TypeAlias, TypeVar

from arbiterd import __version__
from arbiterd.core.decide import decide
from arbiterd.core.intent import intent
from arbiterd.core.state import State
from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json
from arbiterd.files.typed import checked
from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings
from arbiterd.secrets.redact import Redactor

FORMAT = 1
_MODULES = (
    "arbiterd.model.actions",
    "arbiterd.model.backend",
    "arbiterd.model.decision",
    "arbiterd.model.devices",
    "arbiterd.model.events",
    "arbiterd.model.gateway",
    "arbiterd.model.health",
    "arbiterd.model.launch",
    "arbiterd.model.observation",
    "arbiterd.model.pressure",
    "arbiterd.model.reading",
    "arbiterd.model.sandbox",
    "arbiterd.model.settings",
    "arbiterd.model.switch",
    "arbiterd.core.state",
    "arbiterd.engines.base",
)
Json: TypeAlias = Any
_INFINITE = {"inf": float("inf"), "-inf": float("-inf")}


class _Same:
    """Marks: nothing has changed."""


_SAME = _Same()


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick as it was: core's input, and what came of it."""

    observation: Observation
    before: State
    decision: Decision
    settings: Settings


@lru_cache(maxsize=1)
def _classes() -> dict[str, type]:
    """Every frozen value and every enumeration that may stand in a trace, by name."""
    found: dict[str, type] = {}
    for name in _MODULES:
        for one in vars(import_module(name)).values():
            if isinstance(one, type) and (is_dataclass(one) or issubclass(one, Enum)):
                found[one.__name__] = one
    return found


@lru_cache(maxsize=256)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


# -- writing ---------------------------------------------------------------------------------------
def encode(value: object) -> Json:
    """A value as JSON.

    Raises:
        TypeError: a kind of value that core has no business with (a list, an open file).

    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return {"$": type(value).__name__, "v": value.value}
    if isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return {"$": "float", "v": str(value)} if value in _INFINITE.values() else value
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    if isinstance(value, frozenset):
        return {"$": "set", "v": [encode(one) for one in sorted(value)]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key[:1] not in ("$", "~") for key in value):
            return {key: encode(one) for key, one in value.items()}
        return {"$": "map", "v": [[encode(key), encode(one)] for key, one in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        rows = {name: encode(getattr(value, name)) for name in _names(type(value))}
        return {"$": type(value).__name__, **rows}
    msg = f"a {type(value).__name__} cannot stand in a trace"
    raise TypeError(msg)


def difference(old: object, new: object) -> Json | _Same:
    """What turns ``old`` into ``new``: only fields and keys that have changed."""
    if old is new:
        return _SAME
    if type(old) is not type(new):
        return encode(new)
    if is_dataclass(new) and not isinstance(new, type):
        rows = {}
        for name in _names(type(new)):
            one = difference(getattr(old, name), getattr(new, name))
            if one is not _SAME:
                rows[name] = one
        return {"~": rows} if rows else _SAME
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _keys(old, new)
    return _SAME if old == new else encode(new)


def _keys(old: Mapping[Any, object], new: Mapping[Any, object]) -> Json | _Same:
    """Changed and removed keys; the whole when the order would not come out (core goes by order)."""
    kept = [key for key in old if key in new]
    expected = [*kept, *(key for key in new if key not in old)]
    if list(new) != expected or not all(isinstance(key, str) for key in (*old, *new)):
        return _SAME if old == new and list(old) == list(new) else encode(new)
    rows = {}
    for key, value in new.items():
        one = difference(old[key], value) if key in old else encode(value)
        if one is not _SAME:
            rows[key] = one
    gone = [key for key in old if key not in new]
    if not rows and not gone:
        return _SAME
    return {"~k": rows, "~d": gone} if gone else {"~k": rows}


# -- reading ---------------------------------------------------------------------------------------
def decode(value: Json) -> Any:
    """The value again.

    Raises:
        ArbiterError: written by a version that has other classes or fields.

    """
    if isinstance(value, list):
        return tuple(decode(one) for one in value)
    if not isinstance(value, dict):
        return value
    name = value.get("$")
    if name is None:
        return {key: decode(one) for key, one in value.items()}
    if name == "float":
        return _INFINITE[value["v"]]
    if name == "set":
        return frozenset(decode(one) for one in value["v"])
    if name == "map":
        return {decode(key): decode(one) for key, one in value["v"]}
    kind = _classes().get(name)
    try:
        if kind is None:
            return _unknown(name, "no such class")
        if issubclass(kind, Enum):
            return kind(value["v"])
        return kind(**checked(kind, {k: decode(v) for k, v in value.items() if k != "$"}))
    except (KeyError, TypeError, ValueError) as error:
        return _unknown(name, str(error))


def _unknown(name: str, why: str) -> Never:
    msg = f"it has a {name} that version {__version__} cannot build: {why}"
    raise ArbiterError(msg)


def patch(old: Any, change: Json) -> Any:
    """``old`` with a difference applied."""
    if isinstance(change, dict):
        if "~" in change:
            rows = {name: patch(getattr(old, name), one) for name, one in change["~"].items()}
            return replace(old, **checked(type(old), rows))
        if "~k" in change:
            made = {key: one for key, one in old.items() if key not in change.get("~d", ())}
            for key, one in change["~k"].items():
                made[key] = patch(old.get(key), one)
            return made
    return decode(change)


# -- files -----------------------------------------------------------------------------------------
class Writer:
    """Makes the lines of one trace, in order, without secrets."""

    def __init__(self, redactor: Redactor | None = None) -> None:
        self._last: Tick | None = None
        self._redactor = redactor or Redactor()

    def lines(self, tick: Tick) -> Iterator[str]:
        """The header before the first tick, then one line a tick."""
        last = self._last
        self._last = tick
        if last is None:
            yield self._line(
                {
                    "trace": FORMAT,
                    "version": __version__,
                    "recorded_at": tick.observation.wall,
                    "settings": encode(tick.settings),
                    "state": encode(tick.before),
                }
            )
            yield self._line({"o": encode(tick.observation), "d": encode(tick.decision)})
            return
        row: dict[str, Json] = {}
        if tick.settings is not last.settings:
            row["s"] = encode(tick.settings)
        for key, old, new in (
            ("o", last.observation, tick.observation),
            ("d", last.decision, tick.decision),
        ):
            change = difference(old, new)
            if change is not _SAME:
                row[key] = change
        yield self._line(row)

    def _line(self, row: Json) -> str:
        text = _text(row)
        if not self._redactor.has(text):
            return text
        self._sign(row)
        return _text(self._redactor.document(row))

    def _sign(self, value: Json) -> None:
        """A backend that loses a secret keeps the digest it was started by: a replay would restart it."""
        if isinstance(value, list):
            for one in value:
                self._sign(one)
        elif isinstance(value, dict):
            if value.get("$") == "Mode":
                for name, backend in value["backends"].items():
                    if self._redactor.has(_text(backend)):
                        share = value["shares"][name]
                        backend["digest"] = intent(decode(backend), decode(share))
            for one in value.values():
                self._sign(one)


def _text(row: Json) -> str:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a trace."""

    version: str
    recorded_at: float
    settings: Settings
    state: State


class Reader:
    """Reads a trace line by line. ``header`` is there at once.

    Raises:
        ArbiterError: no trace, or one that this version cannot read; the message says why.

    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        row = _row(next(self._lines, ""), 1)
        if row.get("trace") != FORMAT:
            msg = "line 1: this is no trace; arbiterctl record FILE writes one"
            raise ArbiterError(msg)
        try:
            self.header = Header(
                version=str(row["version"]),
                recorded_at=float(row["recorded_at"]),
                settings=_one(Settings, decode(row["settings"])),
                state=_one(State, decode(row["state"])),
            )
        except KeyError as error:
            msg = f"line 1: the header has no {error}"
            raise ArbiterError(msg) from None
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"line 1: the header cannot be read: {error}"
            raise ArbiterError(msg) from None
        except ArbiterError as error:
            msg = f"line 1, recorded by version {row.get('version')}: {error}"
            raise ArbiterError(msg) from None

    def ticks(self) -> Iterator[tuple[Observation, Decision, Settings]]:
        """Every tick as it was recorded. A last line that was cut off is left out.

        Raises:
            ArbiterError: a line that is none.

        """
        observation: Observation | None = None
        decision: Decision | None = None
        settings = self.header.settings
        for number, text in enumerate(self._lines, 2):
            if not text.endswith("\n"):
                return
            row = _row(text, number)
            if "error" in row:
                msg = f"line {number}: the recording ended: {row['error']}"
                raise ArbiterError(msg)
            try:
                settings = _one(Settings, decode(row["s"])) if "s" in row else settings
                if "o" in row:
                    observation = _one(Observation, patch(observation, row["o"]))
                if "d" in row:
                    decision = _one(Decision, patch(decision, row["d"]))
            except _NO_LINE as error:
                msg = f"line {number}, recorded by version {self.header.version}: {error}"
                raise ArbiterError(msg) from None
            if observation is None or decision is None:
                msg = f"line {number}: the first tick is not whole"
                raise ArbiterError(msg)
            yield observation, decision, settings


_NO_LINE = (ArbiterError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
T = TypeVar("T")


def _one(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        msg = f"a {type(value).__name__} where a {kind.__name__} belongs"
        raise TypeError(msg)
    return value


def _row(text: str, number: int) -> dict[str, Json]:
    try:
        row = strict_json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        msg = f"line {number}: this is no line of a trace; arbiterctl record FILE writes one"
        raise ArbiterError(msg)
    return row


@dataclass(frozen=True, slots=True)
class Replayed:
    """One tick of a replay: what core decides now, what it decided then."""

    observation: Observation
    decision: Decision
    recorded: Decision

    @property
    def same(self) -> bool:
        """Whether every part of both decisions is the same."""
        return self.decision == self.recorded


def _in_force(state: State, recorded: Settings, given: Settings) -> State:
    """Core knows settings by identity, another object is a reload; a replay begins with none, also when
    it is run with others than it was recorded with.
    """
    first = given if state.settings == recorded else state.settings
    good = given if state.good == recorded else state.good
    return replace(state, settings=first, good=good)


def replay(reader: Reader, settings: Settings | None = None) -> Iterator[Replayed]:
    """Run a trace through core. ``settings``: others than it was recorded with.

    Raises:
        ArbiterError: a line that is none, or a tick that core cannot decide on (its cause is attached).

    """
    recorded_with = reader.header.settings
    state = _in_force(reader.header.state, recorded_with, settings or recorded_with)
    for number, (observation, recorded, own) in enumerate(reader.ticks(), 1):
        try:
            decision, state = decide(observation, state, settings or own)
        except Exception as error:
            msg = (
                f"tick {number}: core cannot decide on it: {type(error).__name__}: {error}; "
                "if nobody has edited this trace, please report it"
            )
            raise ArbiterError(msg) from error
        yield Replayed(observation, decision, recorded)
