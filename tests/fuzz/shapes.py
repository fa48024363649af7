"""Strategies: JSON with the values that JSON readers stumble over, and valid documents that were damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from hypothesis import strategies as st

_TEXTS = (
    "", " ", "0", "-1", "²", "1e400", "NaN", "\x00", "\n", "\u2028", "\ud800", "é" * 300, "a" * 5000, "../..",
    "$", "~", "{}", "0x10", "12345678901234567890", "٣", "\u212a", "ſ", "true", "null", "GPU-", "/dev/zero",
)  # fmt: skip
_NUMBERS = (
    0, -1, 1, 255, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e300, 5e-324,
)  # fmt: skip
DEPTHS = (600, 1200, 20_000)


class Raw(str):
    """Text that goes into the document as it is: what no JSON writer would write."""

    __slots__ = ()


RAW = tuple(Raw(one) for one in (
    "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "9" * 4300, "9" * 4301, '"\\ud800"', "01", "1.", "'x'", "",
    *("[" * depth + "]" * depth for depth in DEPTHS), '{"a":' * 1200 + "1" + "}" * 1200,
))  # fmt: skip


# Made once: a strategy made within a draw is validated anew each time, which took most of the time.
ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from((None, True, False, *_NUMBERS, *_TEXTS, *RAW, (), [0], [None, ""], ["a", 1.5], {"": 0})),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)  # fmt: skip
_HOW, _COUNT, _EDITS, _ONE_OF_TEN = (
    st.integers(0, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 9),
)
_SPANS, _ADDED = st.sampled_from((0, 1, 2, 4, 8, 30)), st.sampled_from(_TEXTS)
_PARTS = st.one_of(
    st.sampled_from((b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b'"', b"{", b"}", b"\n",
                     *(t.encode("utf-8", "surrogatepass") for t in _TEXTS))),
    st.binary(max_size=8),
)  # fmt: skip


@cache
def _below(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count)


def write(value: Any) -> bytes:
    """As JSON; infinities, NaN, lone surrogates and ``Raw`` as they are."""
    return _write(value).encode("utf-8", "surrogatepass")


def _write(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{_write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_write, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value) if abs(value) >= 10**4000 else str(value)
    return json.dumps(value, ensure_ascii=len(str(value)) % 2 == 0)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node."""
    out = [at]
    if isinstance(value, dict):
        for key, one in value.items():
            out += places(one, (*at, key))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            out += places(one, (*at, number))
    return out


def put(value: Any, at: Sequence[Any], new: Any) -> Any:
    """A copy with another value at this path."""
    if not at:
        return new
    if isinstance(value, dict):
        return {**value, at[0]: put(value.get(at[0]), at[1:], new)}
    return [put(one, at[1:], new) if n == at[0] else one for n, one in enumerate(value)]


@st.composite
def damaged(draw: st.DrawFn, documents: Sequence[Any]) -> Any:
    """A valid document with up to three nodes replaced, left out or added."""
    value = documents[draw(_below(len(documents) - 1))]
    for _ in range(draw(_COUNT)):
        found = places(value)
        at = found[draw(_below(len(found) - 1))]
        how = draw(_HOW)
        here = value
        for step in at:
            here = here[step]
        if how == 0 and isinstance(here, dict):
            new: Any = {**here, draw(_ADDED): draw(ODD)}
        elif how == 1 and isinstance(here, dict) and here:
            gone = list(here)[draw(_below(len(here) - 1))]
            new = {key: one for key, one in here.items() if key != gone}
        elif how == 2 and isinstance(here, list):
            new = [*here, draw(ODD)]
        else:
            new = draw(ODD)
        value = put(value, at, new)
    return value


def documents(*valid: Any) -> st.SearchStrategy[bytes]:
    """Damaged JSON documents; now and then their text is damaged as well, or is anything."""
    whole = damaged(valid).map(write)
    return st.one_of(whole, whole, whole, edited(tuple(map(write, valid))), st.binary(max_size=60))


@st.composite
def edited(draw: st.DrawFn, texts: Sequence[bytes]) -> bytes:
    """A valid text with up to four places overwritten, cut, doubled, or filled with other bytes."""
    data = texts[draw(_below(len(texts) - 1))]
    for _ in range(draw(_EDITS)):
        at = draw(_below(len(data)))
        to = min(len(data), at + draw(_SPANS))
        how = draw(_HOW)
        if how == 0:
            part = data[at:to] * 3
        elif how == 1:
            other = texts[draw(_below(len(texts) - 1))]
            from_ = draw(_below(len(other)))
            part = other[from_ : from_ + 20]
        else:
            part = draw(_PARTS)
        data = data[:at] + part + data[to:]
    return data[: draw(_below(len(data)))] if draw(_ONE_OF_TEN) == 0 else data


def texts(*valid: str | bytes) -> st.SearchStrategy[bytes]:
    """Edited texts, or any text."""
    given = tuple(one.encode() if isinstance(one, str) else one for one in valid)
    anything = st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
    return st.one_of(edited(given), edited(given), edited(given), anything)


def strict(data: bytes) -> Any:
    """What every strict JSON reader takes (RFC 8259): no NaN, no infinity, no lone surrogate, UTF-8.

    Raises:
        ValueError: it is none.

    """

    def refuse(name: str) -> Any:
        msg = f"{name} is not JSON"
        raise ValueError(msg)

    found = json.loads(data.decode(), parse_constant=refuse)
    _finite(found)
    return found


def _finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        msg = "a number beyond every float"
        raise ValueError(msg)
    if isinstance(value, dict):
        for one in value.values():
            _finite(one)
    if isinstance(value, list):
        for one in value:
            _finite(one)
