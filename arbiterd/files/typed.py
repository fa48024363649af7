"""Values of a file as the frozen values that they were written from, each field of its declared type.

A dataclass takes anything for any field; what is wrong then shows at the first sum, in a tick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


@cache
def _form(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def build(kind: type[T], row: object) -> T:
    """A ``kind`` (a dataclass) of a JSON object.

    Raises:
        ValueError: a field is missing, unknown or of another type.

    """
    if isinstance(row, dict) and (unknown := row.keys() - kind.__dataclass_fields__.keys()):  # type: ignore[attr-defined]
        msg = f"unknown field {min(unknown)!r}"
        raise ValueError(msg)
    made: T = _form(kind).validate_python(row)  # type: ignore[arg-type]
    return made


def left_out(row: object, made: Any) -> tuple[str, ...]:
    """Keys of a JSON object, at any depth, that the value built from it has no field for: 'a.b.mood'."""
    return tuple(_left_out(row, asdict(made), ""))


def _left_out(row: object, made: object, path: str) -> Iterator[str]:
    if isinstance(row, Mapping) and isinstance(made, Mapping):
        for key, one in row.items():
            if key in made:
                yield from _left_out(one, made[key], f"{path}{key}.")
            else:
                yield f"{path}{key}"
    elif isinstance(row, list) and isinstance(made, list | tuple):
        for one, other in zip(row, made, strict=False):
            yield from _left_out(one, other, path)


def checked(kind: type, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields for a ``kind``, values already built: as they are, each of its declared type.

    Raises:
        ValueError: one is unknown, or of another type.

    """
    for name, value in fields.items():
        try:
            _field(kind, name).validate_python(value, strict=True)
        except KeyError:
            msg = f"unknown field {name!r}"
            raise ValueError(msg) from None
        except ValidationError as error:
            msg = f"{name}: {error.errors()[0]['msg']}"
            raise ValueError(msg) from None
    return fields


@cache
def _field(kind: Any, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_hints(kind)[name])


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
