"""Sizes and durations: parsing and printing. Sizes are bytes (int), durations seconds (float)."""

from __future__ import annotations

import re

from arbiterd.errors import InvalidValue

KIB = 1024
MIB = 1024**2
GIB = 1024**3
SIZE_MAX = GIB**2  # 1 EiB: more than any host has, and a number that every reader of ours can hold
DURATION_MAX_S = 100 * 365 * 86400.0

_SIZES = {
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_NEAR = {"K": "KiB", "M": "MiB", "G": "GiB"}
_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# Nothing is given back: "111111111111111111111111111111!" has a billion ways to be no duration.
_NUMBER = re.compile(r"\s*+(\d++(?:\.\d++)?+)\s*+([A-Za-z]*+)\s*+")
_PARTS = re.compile(rf"(?:{_NUMBER.pattern})++")


def parse_size(text: str) -> int:
    """Read '512MiB' as bytes.

    Raises:
        InvalidValue: no unit, an unknown unit, no number, over SIZE_MAX.

    """
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in _SIZES:
        near = _NEAR.get(match[2][:1].upper(), "") if match else ""
        example = f"{match[1]}{near}" if match and near else "512MiB"
        units = ", ".join(_SIZES)
        raise InvalidValue(
            f"{text!r} is no size", f"write a number and one of {units}, like '{example}'"
        )
    size = float(match[1]) * _SIZES[match[2]]
    if size > SIZE_MAX:
        raise InvalidValue(f"{text!r} is too large", f"write at most {SIZE_MAX // GIB}GiB")
    return round(size)


def parse_duration(text: str) -> float:
    """Read '250ms', '10m', '1h30m' or '2h 30min' as seconds. ``m`` and ``min`` are minutes.

    Raises:
        InvalidValue: no unit, an unknown unit, no number, over 100 years.

    """
    parts = _NUMBER.findall(text) if _PARTS.fullmatch(text) else []
    if not parts or any(unit not in _DURATIONS for _, unit in parts):
        units = ", ".join(_DURATIONS)
        raise InvalidValue(
            f"{text!r} is no duration", f"write numbers with one of {units}, like '10s' or '1h30m'"
        )
    seconds = sum(float(number) * _DURATIONS[unit] for number, unit in parts)
    if seconds > DURATION_MAX_S:
        raise InvalidValue(f"{text!r} is too long", "write at most 36500d")
    return seconds


def format_size(size_bytes: float) -> str:
    """Print bytes as people read them: '13.19 GiB', '600 MiB', '12 B'."""
    sign = "-" if size_bytes < 0 else ""
    size = abs(size_bytes)
    if size >= GIB:
        return f"{sign}{size / GIB:.2f} GiB"
    if size >= MIB:
        return f"{sign}{size / MIB:.0f} MiB"
    if size >= KIB:
        return f"{sign}{size / KIB:.0f} KiB"
    return f"{sign}{size:.0f} B"


def format_duration(seconds: float) -> str:
    """Print seconds as people read them: '250 ms', '4.2 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
