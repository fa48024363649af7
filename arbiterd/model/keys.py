"""What the configuration file has of a field, as the field's metadata: the one definition of a setting.

``poll_s: Annotated[Duration, Key("50ms to 5s")] = 0.25`` in a frozen dataclass is key ``poll`` of its
table. From it follow how the file is parsed (config.schema), the reference in docs/configuration.md, the
golden list of keys, and whether a change of it restarts an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

UNITS = ("_s", "_bytes")


class Form(Enum):
    """How the file writes a value whose type does not tell it. config.value_types reads each."""

    TEXT = "text"
    SIZE = "size"
    SIZE_OR_AUTO = "size or auto"
    DURATION = "duration"
    KEEP_ALIVE = "duration or -1"
    COUNT = "count from 1"
    WHOLE = "count from 0"
    PORT = "port"
    PORT_OR_OFF = "port or 0"
    ADDRESS = "IP address"
    LISTEN = "HOST:PORT"
    FILE = "absolute path"
    FILE_OR_NONE = "absolute path or nothing"
    WORDS = "list of text"
    COUNTS = "list of counts from 1"
    NETWORKS = "list of networks"
    HOST_NAMES = "list of host names"
    ORIGINS = "list of origins"
    READ_APART = "several forms, read by a function of its own"


class Mark(Enum):
    """Further metadata. ARBITER_ONLY: no engine need notice a change of it, so none is restarted."""

    ARBITER_ONLY = "arbiter only"


ARBITER_ONLY = Mark.ARBITER_ONLY
Size: TypeAlias = Annotated[int, Form.SIZE]
Duration: TypeAlias = Annotated[float, Form.DURATION]
Count: TypeAlias = Annotated[int, Form.COUNT]
Whole: TypeAlias = Annotated[int, Form.WHOLE]
Port: TypeAlias = Annotated[int, Form.PORT]
File: TypeAlias = Annotated[str, Form.FILE]
FileOrNone: TypeAlias = Annotated[str, Form.FILE_OR_NONE]
Words: TypeAlias = Annotated[tuple[str, ...], Form.WORDS]


@dataclass(frozen=True, slots=True)
class Key:
    """A field that the file sets.

    ``meaning``: what the reference says of it. ``name``: where it is not the field's name without its unit.
    ``shown``: the value in the reference, as TOML, where the default is no example. ``default``: of the
    file where it is not the field's (...): None means that what holds then follows from other keys or the
    engine kind. ``only``: the engine kind that has it, "" for each. ``least``: of a number.
    """

    meaning: str = ""
    name: str = ""
    shown: str = ""
    default: Any = ...
    only: str = ""
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Inline:
    """A field whose own fields are keys of the same table, for one engine kind."""

    only: str


class Setting(NamedTuple):
    """A key of a table, its ``field`` and the field's type; ``default`` is ... where it is required."""

    field: str
    name: str
    type: Any
    form: Form | None
    key: Key
    default: Any


def keys_of(owner: Any, kind: str = "") -> tuple[Setting, ...]:
    """Keys of the table that ``owner`` (a dataclass) is; ``kind``: with those of this engine kind."""
    return tuple(_keys(owner, kind))


def inlined(owner: Any, kind: str) -> tuple[tuple[str, type], ...]:
    """Fields of ``owner`` whose own fields are keys of its table for this engine kind, with their types."""
    return tuple(
        (one.name, type_)
        for one, type_, marks in _fields(owner)
        if any(isinstance(mark, Inline) and mark.only == kind for mark in marks)
    )


def _keys(owner: Any, kind: str) -> Iterator[Setting]:
    for one, type_, marks in _fields(owner):
        key = next((mark for mark in marks if isinstance(mark, Key)), None)
        if key is not None and key.only in ("", kind):
            form = next((mark for mark in marks if isinstance(mark, Form)), None)
            default = _default(one) if key.default is ... else key.default
            yield Setting(one.name, key.name or without_unit(one.name), type_, form, key, default)
    for _, type_ in inlined(owner, kind):
        yield from _keys(type_, kind)


def arbiter_only(owner: Any) -> frozenset[str]:
    """Fields marked ARBITER_ONLY, of ``owner`` and of the dataclasses within it."""
    found = set()
    for one, type_, marks in _fields(owner):
        if ARBITER_ONLY in marks:
            found.add(one.name)
        elif is_dataclass(type_):
            found |= arbiter_only(type_)
    return frozenset(found)


def without_unit(field: str) -> str:
    """The name of a key: that of its field without its unit."""
    return next((field.removesuffix(unit) for unit in UNITS if field.endswith(unit)), field)


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return ... if one.default is MISSING else one.default


@cache
def _fields(owner: Any) -> tuple[tuple[Field[Any], Any, tuple[Any, ...]], ...]:
    """Fields with their types and the metadata of these."""
    out = []
    hints = get_type_hints(owner, include_extras=True)
    for one in fields(owner):
        hint = hints[one.name]
        marks: tuple[Any, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks = tuple(more)
        out.append((one, hint, marks))
    return tuple(out)
