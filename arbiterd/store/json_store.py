"""A list kept as JSON in state_dir over restarts and reboots, written off the tick.

Unreadable content is put aside under another name and becomes a problem to be told, never an error:
what is kept here helps people, the daemon does its work without it.
"""

from __future__ import annotations

import json
import queue
import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from arbiterd.aside import aside
from arbiterd.files.owned import NotTrusted, put_owned, read_owned, top
from arbiterd.files.strict_json import strict_json
from arbiterd.secrets.redact import Redactor

T = TypeVar("T")


class Kept(Generic[T]):
    """``save`` never waits for the disk: a thread writes the newest list, whole and atomically."""

    name: str

    def __init__(self, state_dir: Path, redactor: Redactor | None = None) -> None:
        self._path = top(state_dir) / self.name
        self._redactor = redactor or Redactor()
        self.problems: list[str] = []
        self._last: tuple[T, ...] = ()
        self._queue: queue.SimpleQueue[tuple[T, ...] | None] = queue.SimpleQueue()
        self._begun = False
        self._ended = threading.Event()

    @abstractmethod
    def encode(self, one: T) -> object:
        """One entry as JSON."""

    @abstractmethod
    def decode(self, row: Any) -> T:
        """One entry from JSON.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is none.

        """

    def read(self) -> tuple[tuple[T, ...], str]:
        """(what is kept, "") or ((), why it cannot be read). Changes nothing."""
        try:
            rows = strict_json(read_owned(self._path))
            return tuple(self.decode(row) for row in rows), ""
        except FileNotFoundError:
            return (), ""
        except NotTrusted as error:
            return (), str(error)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            return (), f"cannot read {self._path}: {type(error).__name__}: {error}"

    def load_all(self) -> tuple[T, ...]:
        """What was kept; an unreadable file is put aside and said in ``problems``."""
        self._last, problem = self.read()
        if problem:
            aside = self._path.with_suffix(".broken")
            try:
                self._path.replace(aside)
                self.problems.append(f"{problem}; kept as {aside.name}")
            except OSError as error:
                self.problems.append(f"{problem}; it could not be put aside: {error.strerror}")
        return self._last

    def save_all(self, entries: Sequence[T]) -> None:
        """Keep these from now on. Cheap when nothing has changed."""
        newest = tuple(entries)
        if newest == self._last:
            return
        self._last = newest
        if not self._begun:
            self._begun = True
            aside(self._run, name=self.name)
        self._queue.put(newest)

    def close(self) -> None:
        """Write what is left."""
        if self._begun:
            self._queue.put(None)
            self._ended.wait(5)

    def _run(self) -> None:
        self._follow()
        self._ended.set()

    def _follow(self) -> None:
        while True:
            newest = self._queue.get()
            while not self._queue.empty() and newest is not None:
                following = self._queue.get()
                if following is None:
                    self._write(newest)
                newest = following
            if newest is None:
                return
            self._write(newest)

    def _write(self, entries: tuple[T, ...]) -> None:
        """A full disk costs what was to be kept, nothing else. Synced: a power cut must not leave an
        empty file under the name.
        """
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            rows = self._redactor.document([self.encode(one) for one in entries])
            put_owned(self._path, json.dumps(rows).encode(), sync=True)
