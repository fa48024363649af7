"""Frozen values as JSON and back, with the names of their classes, and the difference of two values.

Some actions have the same fields, and core's state has keys that are no text, so the types of the fields
alone do not tell what to build (docs/traces.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import lru_cache
from importlib import import_module
from typing import Any, Never, TypeAlias

from arbiterd import __version__
from arbiterd.errors import ArbiterError
from arbiterd.files.typed import checked

_MODULES = (
    "arbiterd.model.actions",
    "arbiterd.model.backend",
    "arbiterd.model.decision",
    "arbiterd.model.devices",
    "arbiterd.model.engine_options",
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
    "arbiterd.core.backend.backend_axes",
    "arbiterd.core.backend.backend_state",
    "arbiterd.core.memory.device_state",
    "arbiterd.core.state",
    "arbiterd.engines.base",
)
Json: TypeAlias = Any
_INFINITE = {"inf": float("inf"), "-inf": float("-inf")}


class Same:
    """Marks: nothing has changed."""


SAME = Same()


@lru_cache(maxsize=1)
def classes() -> dict[str, type]:
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


def difference(old: object, new: object) -> Json | Same:
    """What turns ``old`` into ``new``: only fields and keys that have changed."""
    if old is new:
        return SAME
    if type(old) is not type(new):
        return encode(new)
    if is_dataclass(new) and not isinstance(new, type):
        rows = {}
        for name in _names(type(new)):
            one = difference(getattr(old, name), getattr(new, name))
            if one is not SAME:
                rows[name] = one
        return {"~": rows} if rows else SAME
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return _keys(old, new)
    return SAME if old == new else encode(new)


def _keys(old: Mapping[Any, object], new: Mapping[Any, object]) -> Json | Same:
    """Changed and removed keys; the whole when the order would not come out (core goes by order)."""
    kept = [key for key in old if key in new]
    expected = [*kept, *(key for key in new if key not in old)]
    if list(new) != expected or not all(isinstance(key, str) for key in (*old, *new)):
        return SAME if old == new and list(old) == list(new) else encode(new)
    rows = {}
    for key, value in new.items():
        one = difference(old[key], value) if key in old else encode(value)
        if one is not SAME:
            rows[key] = one
    gone = [key for key in old if key not in new]
    if not rows and not gone:
        return SAME
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
    kind = classes().get(name)
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
