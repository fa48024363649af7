"""A reading is either known or unknown with a reason: never 0, NaN or None (design, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """A value that was read at ``at`` (monotonic seconds)."""

    value: T
    at: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """A value that could not be read since ``since`` (monotonic seconds), and why."""

    reason: str
    since: float


Reading: TypeAlias = Known[T] | Unknown
