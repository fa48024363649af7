"""What a restart of the daemon must not lose, kept in runtime_dir/carry.json (core/carry.py).

Written by a thread, temporary name then rename; never read over a reboot.
"""

from __future__ import annotations

import json
import queue
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from arbiterd import procfs
from arbiterd.core.state import Carry

NAME = "carry.json"


class CarryStore:
    """``save`` never waits for the disk."""

    def __init__(self, runtime_dir: Path) -> None:
        self._path = runtime_dir / NAME
        self.problems: list[str] = []
        self._last: Carry | None = None
        self._queue: queue.SimpleQueue[Carry | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def load(self) -> Carry | None:
        """What the daemon before us left in this boot; an unreadable file is put aside and said."""
        try:
            found = json.loads(self._path.read_text())
            if found["boot_id"] != procfs.boot_id():
                return None
            return TypeAdapter(Carry).validate_python(found["carry"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
            aside = self._path.with_suffix(".broken")
            with suppress(OSError):
                self._path.replace(aside)
            text = str(error).splitlines()[0]
            self.problems.append(f"cannot read {self._path}: {text}; kept as {aside.name}")
            return None

    def save(self, carry: Carry) -> None:
        """Keep this from now on. Cheap when nothing has changed."""
        if carry == self._last:
            return
        self._last = carry
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="carry", daemon=True)
            self._thread.start()
        self._queue.put(carry)

    def close(self) -> None:
        """Write what is left."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while (newest := self._queue.get()) is not None:
            ended = False
            while not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    ended = True
                    break
                newest = following
            self._write(newest)
            if ended:
                return

    def _write(self, carry: Carry) -> None:
        """A full disk costs what a restart would have carried on, nothing else."""
        with suppress(OSError):
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps({"boot_id": procfs.boot_id(), "carry": asdict(carry)}))
            temporary.replace(self._path)
