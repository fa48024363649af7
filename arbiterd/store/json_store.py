"""One value kept as JSON in a file: validated when it is read, written whole, off the tick.

Whatever is wrong with the file, the daemon starts without it: the file is put in quarantine as
NAME.broken and becomes a problem to be told.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from arbiterd.aside import aside
from arbiterd.files.owned import NotTrusted, read_owned, top
from arbiterd.files.strict_json import strict_json
from arbiterd.secrets.redact import Redactor
from arbiterd.store import atomic

T = TypeVar("T")
_CLOSE_S = 5.0


class JsonStore(Generic[T]):
    """``parse`` makes the value of the JSON and raises whatever it likes; ``render`` is its reverse.
    ``absent``: the value where there is no file. ``loads``: how the text is read. ``mode``, ``sync``: as
    in store/atomic.py. ``problems``: what was wrong with the file, for people.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[Any], T],
        render: Callable[[T], object],
        *,
        absent: T,
        loads: Callable[[bytes], Any] = strict_json,
        mode: int = atomic.OWN_FILE,
        sync: bool = False,
        redactor: Redactor | None = None,
    ) -> None:
        self.path = top(path.parent) / path.name
        self.problems: list[str] = []
        self._parse, self._render, self._loads = parse, render, loads
        self._absent = self._last = absent
        self._mode, self._sync = mode, sync
        self._redactor = redactor or Redactor()
        self._queue: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
        self._begun = False
        self._ended = threading.Event()

    def look(self) -> tuple[T, str]:
        """(the value, ""), or (``absent``, why the file cannot be used). Changes nothing."""
        try:
            return self._read(), ""
        except Exception as error:  # noqa: BLE001 - of a file, anything may be wrong
            return self._absent, _told(self.path, error)

    def load(self) -> T:
        """The value; a file that cannot be used is put in quarantine and told in ``problems``."""
        try:
            self._last = self._read()
        except Exception as error:  # noqa: BLE001 - of a file, anything may be wrong
            self.problems.append(quarantine(self.path, error))
        return self._last

    def _read(self) -> T:
        try:
            raw = read_owned(self.path)
        except FileNotFoundError:
            return self._absent
        return self._parse(self._loads(raw))

    def save(self, value: T) -> None:
        """Keep this from now on. Never waits for the disk; cheap when nothing has changed. A file that
        cannot be written costs what it is for, nothing else.
        """
        if value == self._last:
            return
        self._last = value
        if not self._begun:
            self._begun = True
            aside(self._run, name=self.path.name)
        self._queue.put((value,))

    def put(self, value: T) -> None:
        """Write it now.

        Raises:
            OSError: it cannot be written; it is tried again.

        """
        self._last = value
        self._write(value)

    def close(self) -> None:
        """Write what is left."""
        if self._begun:
            self._queue.put(None)
            self._ended.wait(_CLOSE_S)

    def _run(self) -> None:
        while (newest := self._queue.get()) is not None:
            ended = False
            while not ended and not self._queue.empty():
                following = self._queue.get()
                ended, newest = following is None, following or newest
            with suppress(OSError):
                self._write(newest[0])
            if ended:
                break
        self._ended.set()

    def _write(self, value: T) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._redactor.document(self._render(value)))
        atomic.write(self.path, text.encode(), mode=self._mode, sync=self._sync)


def quarantine(path: Path, error: Exception) -> str:
    """Rename a file that cannot be used to NAME.broken, in place of an older one. Returns what is told."""
    told, broken = _told(path, error), path.with_suffix(".broken")
    try:
        path.replace(broken)
    except OSError as failed:
        return f"{told}; it could not be put aside: {failed.strerror}"
    return f"{told}; kept as {broken.name}"


def _told(path: Path, error: Exception) -> str:
    if isinstance(error, NotTrusted):
        return str(error)
    text = (str(error).splitlines() or [""])[0]
    return f"cannot read {path}: {text or type(error).__name__}"
