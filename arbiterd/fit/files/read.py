"""Reading files of other people: regular files only, bounded, every failure a sentence."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json

JSON_MAX = 16 * 1024**2  # bytes; the largest published index has 9 MB
ENTRIES_MAX = 10_000  # names looked at in one folder


class Unreadable(ArbiterError):
    """A file of a model is broken or may not be read; the message names it and says why."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(stream, size in bytes) of a regular file; a FIFO or device is refused without waiting for it.

    Raises:
        Unreadable: it is not there, no file, or may not be read.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {reason_of(error)}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise Unreadable(f"{path} is no regular file")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream, found.st_size


def take(stream: BinaryIO, count: int, path: Path, what: str) -> bytes:
    """Exactly ``count`` bytes.

    Raises:
        Unreadable: the file ends before.

    """
    try:
        data = stream.read(count)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {reason_of(error)}") from None
    if len(data) != count:
        raise Unreadable(f"{path} is cut off in {what}")
    return data


def read_json(path: Path, limit: int = JSON_MAX) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Unreadable: too long, no JSON, or no object.

    """
    with opened(path) as (stream, size):
        if size > limit:
            raise Unreadable(f"{path} has {size} bytes, more than the {limit} expected of it")
        return parse_json(take(stream, size, path, "its text"), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The bytes as a JSON object.

    Raises:
        Unreadable: they are none.

    """
    try:
        found = strict_json.loads(data)
    except ValueError as error:
        raise Unreadable(f"{path} is no JSON: {str(error)[:120]}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{path} holds no JSON object")
    return found


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted.

    Raises:
        Unreadable: it may not be read, or holds too many.

    """
    out: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                out.append(entry.name)
                if len(out) > ENTRIES_MAX:
                    raise Unreadable(f"{folder} holds more than {ENTRIES_MAX} names")
    except (OSError, ValueError) as error:
        raise Unreadable(f"{folder} cannot be read: {reason_of(error)}") from None
    return sorted(out)


def size_of(path: Path) -> int:
    """Bytes of a regular file (links followed).

    Raises:
        Unreadable: it is none.

    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {reason_of(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(f"{path} is no regular file")
    return found.st_size


def whole(table: Mapping[str, Any], key: str, most: int, path: Path) -> int:
    """A count of a JSON object: 0 when absent or null.

    Raises:
        Unreadable: it is there and no whole number from 0 to ``most``.

    """
    value = table.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Unreadable(f"{path}: {key} = {str(value)[:40]} is no count from 0 to {most}")
    return value


def reason_of(error: Exception) -> str:
    """Why, without the path."""
    if isinstance(error, PermissionError):
        return "this user may not; run as root"
    return getattr(error, "strerror", None) or str(error)[:120]
