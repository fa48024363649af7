"""A line of HAProxy's log as the doors' configuration has it written, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FORMAT: Final = "%[var(txn.n)] %ST %Tw %Tr %Ta %b %[var(txn.b)] %[var(txn.why)] %[var(txn.odd)]"
_NONE = b"-"  # a variable that is not set
_DIGITS = 15  # of a number


@dataclass(frozen=True, slots=True)
class Line:
    """``count``: answers that it stands for. ``queued_ms``, ``first_ms``, ``total_ms``: -1 for none.
    ``proxy``: HAProxy's backend, ``why``: of a refusal, ``odd``: a foreign name in Host, "" for none.
    """

    count: int
    status: int
    queued_ms: int
    first_ms: int
    total_ms: int
    proxy: str
    backend: str
    why: str
    odd: str


def parse(raw: bytes) -> Line | None:
    """One line, None where it is none."""
    words = raw.rstrip(b"\0\n").split(b" ", 8)
    if len(words) < 9 or max(map(len, words[:5])) > _DIGITS:
        return None
    try:
        count = 1 if words[0] == _NONE else int(words[0])
        status, queued, first, total = map(int, words[1:5])
        proxy, backend, why, odd = ("" if word == _NONE else word.decode() for word in words[5:])
    except ValueError:
        return None
    if count < 1 or not 100 <= status <= 999:
        return None
    return Line(count, status, queued, first, total, proxy, backend, why, odd)
