"""safetensors: 8 bytes of length (little endian), a JSON header, then the data."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from arbiterd.fit.files.read import Unreadable, opened, parse_json, take

HEADER_MAX = 16 * 1024**2  # bytes; the format allows 100 MB, published files have some 100 kB
TENSORS_MAX = 500_000
DIMENSIONS_MAX = 16
_DIGITS = 1 << 60
# Bits of one value.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class Tensors:
    """Of one file or several: bytes of all data; values of plain floating types, and their bytes."""

    data_bytes: int
    float_values: int
    float_bytes: int

    def __add__(self, other: Tensors) -> Tensors:
        return Tensors(
            self.data_bytes + other.data_bytes,
            self.float_values + other.float_values,
            self.float_bytes + other.float_bytes,
        )

    def loaded_bytes(self, dtype_bytes: int) -> int:
        """When every plain floating value is held in ``dtype_bytes``."""
        return self.data_bytes - self.float_bytes + self.float_values * dtype_bytes


NO_TENSORS = Tensors(0, 0, 0)


def read_header(path: Path) -> Tensors:
    """Sum up one file, its data untouched.

    Raises:
        Unreadable: broken, cut off, or beyond the bounds.

    """
    with opened(path) as (stream, size):
        length = struct.unpack("<Q", take(stream, 8, path, "its first 8 bytes"))[0]
        if length > HEADER_MAX:
            raise Unreadable(f"{path}: a header of {length} bytes is more than {HEADER_MAX}")
        header = parse_json(take(stream, length, path, "its header"), path)
    room = size - 8 - length
    header.pop("__metadata__", None)
    if len(header) > TENSORS_MAX:
        raise Unreadable(f"{path} names {len(header)} tensors, more than {TENSORS_MAX}")
    total, ranges = NO_TENSORS, []
    for name, entry in header.items():
        begin, end, one = _tensor(entry, name, path)
        if end > room:
            raise Unreadable(
                f"{path} is cut off: its header promises {end} bytes of data, it has {room}"
            )
        ranges.append((begin, end))
        total += one
    ranges.sort()
    if any(after[0] < before[1] for before, after in pairwise(ranges)):
        raise Unreadable(f"{path}: its tensors overlap")
    return total


def _tensor(entry: Any, name: str, path: Path) -> tuple[int, int, Tensors]:
    """(begin, end, sums) of one entry."""
    what = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict):
        raise Unreadable(f"{what} is no object")
    bits = BITS.get(str(entry.get("dtype")))
    if bits is None:
        raise Unreadable(f"{what} has the unknown dtype {str(entry.get('dtype'))[:40]!r}")
    offsets, shape = _counts(entry.get("data_offsets")), _counts(entry.get("shape"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Unreadable(f"{what} has no valid data_offsets")
    if shape is None or len(shape) > DIMENSIONS_MAX:
        raise Unreadable(f"{what} has no valid shape")
    values = 1
    for dimension in shape:
        values *= dimension
    begin, end = offsets
    if -(-values * bits // 8) != end - begin:
        raise Unreadable(f"{what}: its shape needs {values * bits // 8} bytes, not {end - begin}")
    plain = entry["dtype"] in FLOATS
    data = end - begin
    return begin, end, Tensors(data, values if plain else 0, data if plain else 0)


def _counts(given: Any) -> list[int] | None:
    """A list of whole numbers within bounds, else None."""
    sane = isinstance(given, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < _DIGITS for one in given
    )
    return given if sane and isinstance(given, list) else None
