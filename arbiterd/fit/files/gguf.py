"""The metadata of a GGUF file: magic, version, counts, key-value pairs. Tensors are not looked at:
the file's size is what they take. Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from arbiterd.fit.files.read import Unreadable, opened, take

HEADER_MAX = 64 * 1024**2  # bytes; a vocabulary of 256k words with merges has some 10 MB
PAIRS_MAX = 4096
KEY_MAX = 65_535  # bytes, by the format
STRING_MAX = 8 * 1024**2
STRINGS_MAX = 2_000_000  # elements of string arrays in one file
KEPT_MAX = 4096  # elements of an array that is kept (one per layer); longer ones are walked over
KEPT_TOTAL_MAX = 1_000_000
DEPTH_MAX = 4
TENSORS_MAX = 1 << 24
VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


class _Reader:
    """A bounded walk through one header."""

    def __init__(self, stream: BinaryIO, size: int, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = min(size, HEADER_MAX)
        self._size = size
        self._strings = 0
        self._kept = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._spend(count)
        return take(self._stream, count, self._path, "its header")

    def skip(self, count: int) -> None:
        """Walk over bytes."""
        self._spend(count)
        self._stream.seek(count, 1)

    def unpack(self, form: str) -> Any:
        """One number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, limit: int = STRING_MAX) -> str:
        """One string."""
        return self.take(self._length(limit)).decode("utf-8", "replace")

    def fail(self, why: str) -> Unreadable:
        """An error that names the file."""
        return Unreadable(f"{self._path}: {why}")

    def value(self, kind: int, depth: int = 0) -> Any:
        """One value; None for an array that is only walked over."""
        form = _SCALARS.get(kind)
        if form is not None:
            return self.unpack(form)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth >= DEPTH_MAX:
            raise self.fail(f"a value of the unknown type {kind}, or arrays too deep")
        return self._array(depth)

    def _array(self, depth: int) -> Any:
        kind, count = self.unpack("<I"), self.unpack("<Q")
        form = _SCALARS.get(kind)
        if form is not None:
            size = struct.calcsize(form) * count
            self._kept += count if count <= KEPT_MAX and depth == 0 else 0
            if count > KEPT_MAX or depth or self._kept > KEPT_TOTAL_MAX:
                self.skip(size)
                return None
            return list(struct.unpack(f"<{count}{form[1]}", self.take(size)))
        self._strings += count
        if self._strings > STRINGS_MAX:
            raise self.fail(f"its arrays hold more than {STRINGS_MAX} strings")
        for _ in range(count):
            if kind == _STRING:
                self.skip(self._length(STRING_MAX))
            else:
                self.value(kind, depth + 1)
        return None

    def _length(self, limit: int) -> int:
        length = int(self.unpack("<Q"))
        if length > limit:
            raise self.fail(f"a string of {length} bytes is more than {limit}")
        return length

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            if self._size <= HEADER_MAX:
                raise Unreadable(f"{self._path} is cut off in its header")
            raise self.fail(f"its header has more than {HEADER_MAX} bytes")


def read_metadata(path: Path) -> tuple[dict[str, Any], int]:
    """(metadata without long arrays, size of the file in bytes).

    Raises:
        Unreadable: no GGUF, broken, cut off, or beyond the bounds.

    """
    with opened(path) as (stream, size):
        reader = _Reader(stream, size, path)
        if size < 4 or reader.take(4) != b"GGUF":
            raise Unreadable(f"{path} is no GGUF file")
        version = reader.unpack("<I")
        if version not in VERSIONS:
            raise reader.fail(f"GGUF version {version} is not known; 2 and 3 are")
        tensors, pairs = reader.unpack("<Q"), reader.unpack("<Q")
        if tensors > TENSORS_MAX or pairs > PAIRS_MAX:
            raise reader.fail(f"{tensors} tensors and {pairs} keys are beyond all bounds")
        out: dict[str, Any] = {}
        for _ in range(pairs):
            key = reader.text(KEY_MAX)
            found = reader.value(reader.unpack("<I"))
            if found is not None:
                out[key] = found
        return out, size
