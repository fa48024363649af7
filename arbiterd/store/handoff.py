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
from typing import Any

from pydantic import ValidationError

from arbiterd.aside import aside
from arbiterd.core.state import DRAIN_SENTENCES, Carry
from arbiterd.files.owned import put_aside, put_owned, read_owned, top
from arbiterd.files.typed import build, left_out
from arbiterd.linux import procfs
from arbiterd.secrets.redact import Redactor

NAME = "carry.json"
_BROKEN = (OSError, ValueError, TypeError, KeyError, ValidationError, RecursionError)
# Keys of earlier versions that nothing is to be made of: a start's progress is measured anew.
RETIRED = frozenset({"progress_cpu", "progress_at", "progress_log"})


def _no_nan(text: str) -> float:
    """'Not before' may be infinite, but a number that equals nothing is none."""
    if text == "NaN":
        msg = "NaN is not a number"
        raise ValueError(msg)
    return float(text)


def _whole(carry: Carry) -> Carry:
    for name, one in carry.backends.items():
        if one.name != name:
            msg = f"the state of {name!r} names the backend {one.name!r}"
            raise ValueError(msg)
    return carry


def _of_today(carry: Any) -> Any:
    """What 0.2.0 wrote as this version writes it: why a backend drains was told by its sentence alone."""
    causes = {sentence: cause.value for cause, sentence in DRAIN_SENTENCES.items()}
    backends = carry.get("backends") if isinstance(carry, dict) else None
    for one in backends.values() if isinstance(backends, dict) else ():
        if isinstance(one, dict) and one.get("phase") == "draining":
            cause = causes.get(str(one.get("reason")))
            one.setdefault("drain", cause)
    return carry


class CarryStore:
    """``save`` never waits for the disk."""

    def __init__(self, runtime_dir: Path, redactor: Redactor | None = None) -> None:
        self._path = top(runtime_dir) / NAME
        self._redactor = redactor or Redactor()
        self.problems: list[str] = []
        self._last: Carry | None = None
        self._queue: queue.SimpleQueue[Carry | None] = queue.SimpleQueue()
        self._begun = False
        self._ended = threading.Event()

    def load(self) -> Carry | None:
        """What the daemon before us left in this boot; an unreadable file is put aside and said, and so is
        what another version wrote into it that this one has no place for.
        """
        try:
            found = json.loads(read_owned(self._path), parse_constant=_no_nan)
            if found["boot_id"] != procfs.boot_id():
                return None
            row = _of_today(found["carry"])
            carry = _whole(build(Carry, row))
        except FileNotFoundError:
            return None
        except _BROKEN as error:
            self.problems.append(put_aside(self._path, error))
            return None
        self._say(left_out(row, carry))
        return carry

    def _say(self, strange: tuple[str, ...]) -> None:
        keys = [key for key in strange if key.rpartition(".")[2] not in RETIRED]
        if keys:
            text = f"{self._path}: written by another version; left out: {', '.join(keys[:10])}"
            self.problems.append(text)

    def save(self, carry: Carry) -> None:
        """Keep this from now on. Cheap when nothing has changed."""
        if carry == self._last:
            return
        self._last = carry
        if not self._begun:
            self._begun = True
            aside(self._run, name="carry")
        self._queue.put(carry)

    def close(self) -> None:
        """Write what is left."""
        if self._begun:
            self._queue.put(None)
            self._ended.wait(5)

    def _run(self) -> None:
        self._follow()
        self._ended.set()

    def _follow(self) -> None:
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
            whole = {"boot_id": procfs.boot_id(), "carry": asdict(carry)}
            put_owned(self._path, json.dumps(self._redactor.document(whole)).encode())
