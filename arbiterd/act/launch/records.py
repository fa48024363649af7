"""What the launchers keep of a started backend in runtime_dir/backends/NAME.json."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from arbiterd.files import strict_json
from arbiterd.files.owned import read_owned
from arbiterd.files.typed import build


class Named(Protocol):
    """A record."""

    @property
    def backend(self) -> str:
        """The backend that it is of."""


R = TypeVar("R", bound=Named)


def read_record(kind: type[R], path: Path) -> R:
    """The record in this file.

    Raises:
        OSError: it cannot be read, or another user could have written it.
        ValueError: it is none, or another backend's.

    """
    found = build(kind, strict_json.loads(read_owned(path)))
    if found.backend != path.stem:
        msg = f"it names the backend {found.backend!r}"
        raise ValueError(msg)
    return found
