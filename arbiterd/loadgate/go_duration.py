"""Ollama's Duration (api.Duration): a number of seconds, or Go's '1h30m'; its errors in Go's own words.

Read from time.ParseDuration and ollama api/types.go; the words were recorded from Ollama 0.33.
"""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]*)", re.ASCII)


def seconds(value: object) -> float:
    """Seconds. An array or an object is given by its first byte.

    Raises:
        ValueError: it is neither, in the words that Ollama answers with.

    """
    if isinstance(value, str):
        return _parsed(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    kind = "bool"
    if not isinstance(value, bool):  # of an array or an object only the first byte is given
        kind = "[]interface {}" if value in (b"[", bytearray(b"[")) else "map[string]interface {}"
    msg = f"Unsupported type: '{kind}'"
    raise ValueError(msg)


def _parsed(text: str) -> float:
    rest = text[1:] if text[:1] in {"-", "+"} else text
    if rest == "0":
        return 0.0  # the one number that needs no unit
    total, at = 0.0, 0
    while found := _PART.match(rest, at):
        if not found[2]:
            msg = f'time: missing unit in duration "{text}"'
            raise ValueError(msg)
        if found[2] not in _UNITS:
            msg = f'time: unknown unit "{found[2]}" in duration "{text}"'
            raise ValueError(msg)
        total += float(found[1]) * _UNITS[found[2]]
        at = found.end()
    if not rest or at < len(rest):
        msg = f'time: invalid duration "{text}"'
        raise ValueError(msg)
    return -total if text[0] == "-" else total
