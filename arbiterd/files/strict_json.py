"""JSON as RFC 8259 has it: no NaN, no number beyond 64 bits, no key twice, no endless nesting."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

DEEPEST = 32
_DIGITS = 20  # 2**64 and a sign


def strict_json(raw: str | bytes) -> Any:
    """The value.

    Raises:
        ValueError: it is something else; the text says what.

    """
    try:
        found = json.loads(
            raw.decode() if isinstance(raw, bytes) else raw,
            object_pairs_hook=_once,
            parse_constant=_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError:
        msg = "it is not UTF-8"
        raise ValueError(msg) from None
    except RecursionError:
        msg = "it is nested too deeply"
        raise ValueError(msg) from None
    if _depth(found) > DEEPEST:
        msg = "it is nested too deeply"
        raise ValueError(msg)
    return found


def _depth(value: object) -> int:
    """How deep lists and objects lie in each other."""
    deep, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        deep += 1
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return deep


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        msg = "a key is given twice"
        raise ValueError(msg)
    return out


def _constant(text: str) -> NoReturn:
    msg = f"{text} is not a JSON number"
    raise ValueError(msg)


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        msg = "a number is too large"
        raise ValueError(msg)
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        msg = "a number is too large"
        raise ValueError(msg)
    return number


def loads(text: str | bytes | bytearray) -> Any:
    """The value, from a program that need not write as strictly as ``strict_json`` reads: a key may come
    twice, and nesting is bounded by Python's own parser.

    Raises:
        ValueError: not JSON, nested too deep, or with a number beyond a float or 64 bits.

    """
    try:
        return json.loads(text, parse_constant=_constant, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        msg = "it is nested too deeply"
        raise ValueError(msg) from None
