"""How a frozen record changes: into a new one, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def updated(one: T, **fields: Any) -> T:
    """``replace``, but the same object when nothing differs: most of a quiet tick (docs/benchmarks.md)."""
    if all(getattr(one, name) == value for name, value in fields.items()):
        return one
    return replace(one, **fields)


def later(one: T, seconds: float, *moments: str) -> T:
    """With these fields moved on; None or 0: there is none."""
    found = {name: getattr(one, name) for name in moments}
    return updated(one, **{name: at + seconds if at else at for name, at in found.items()})
