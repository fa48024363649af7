"""What the launchers keep of a started backend in runtime_dir/backends/NAME.json."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from arbiterd.files import strict_json
from arbiterd.files.typed import build
from arbiterd.store.json_store import JsonStore


class Named(Protocol):
    """A record."""

    @property
    def backend(self) -> str:
        """The backend that it is of."""


R = TypeVar("R", bound=Named)


def read_record(kind: type[R], path: Path, problems: list[str]) -> R | None:
    """The record in this file, None when there is none. One that cannot be used, another backend's among
    them, is put in quarantine and told in ``problems``.
    """

    def parse(row: object) -> R:
        found = build(kind, row)
        if found.backend != path.stem:
            msg = f"it names the backend {found.backend!r}"
            raise ValueError(msg)
        return found

    loads = strict_json.loads
    store: JsonStore[R | None] = JsonStore(path, parse, str, absent=None, loads=loads)
    found = store.load()
    problems += store.problems
    return found
