"""Taking a changed file while running: all or nothing, off the loop's thread."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arbiterd.aside import aside
from arbiterd.config import Loaded, check_devices, load
from arbiterd.errors import ConfigRefused, Problem
from arbiterd.files import bounded
from arbiterd.model.devices import Device
from arbiterd.model.events import Event, EventName, Severity
from arbiterd.model.settings import Settings
from arbiterd.settings.owner import FileChanged, Refused

MOST_SAID = 50  # of a file's problems in the journal
PENDING_EVERY_S = 1.0
# What a running daemon cannot change under itself.
_FIXED = ("listen", "launcher", "state_dir", "runtime_dir", "log", "dry_run")


@dataclass(frozen=True, slots=True)
class ReloadAnswer:
    """``accepted``, or every problem. ``loaded_at``: when it was read, wall time: what status tells of
    the switch names it, too.
    """

    accepted: bool
    mode: str
    sha256: str = ""
    loaded_at: float = 0.0
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


class Reloader:
    """Reads, checks and posts. Thread-safe; one reload at a time. ``newest``: accepted last."""

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        newest: Callable[[], Settings],
        devices: Callable[[], Sequence[Device]],
        post: Callable[[Loaded | Refused | FileChanged], None],
    ) -> None:
        self._path = path
        self._environ = environ
        self._newest = newest
        self._devices = devices
        self._post = post
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._looking = False
        self._seen: tuple[int, int, int] | None = None
        self._sha = ""

    def reload(self) -> ReloadAnswer:
        """Read the file again; accept it whole or change nothing."""
        with self._lock:
            try:
                loaded = load(self._path, self._environ)
            except ConfigRefused as refused:
                return self._no(refused.problems)
            problems = [*self._fixed(loaded.settings), *self._fits(loaded)]
            errors = tuple(one for one in problems if one.severity == "error")
            if errors:
                return self._no(errors)
            warnings = (*loaded.warnings, *(p for p in problems if p.severity == "warning"))
            self._post(loaded)
            new, source = loaded.settings, loaded.settings.source
            return ReloadAnswer(
                True, new.mode, source.sha256, source.loaded_at, warnings=tuple(warnings)
            )

    def _fits(self, loaded: Loaded) -> tuple[Problem, ...]:
        devices = self._devices()
        return check_devices(loaded, devices) if devices else ()

    def _fixed(self, new: Settings) -> list[Problem]:
        now = self._newest()
        old = now.arbiter
        out = []
        for name in _FIXED:
            before, after = getattr(old, name), getattr(new.arbiter, name)
            if before != after:
                wrong = f"cannot change from {before} to {after} while running"
                right = "restart instead: systemctl restart gpu-arbiter (engines keep running)"
                out.append(Problem(str(self._path), 0, f"arbiter.{name}", wrong, right))
        if now.gateway.enabled != new.gateway.enabled:
            was = str(now.gateway.enabled).lower()
            wrong = f"cannot change from {was} while running: every engine would change its port"
            right = "stop, then start: systemctl stop gpu-arbiter; systemctl start gpu-arbiter"
            out.append(Problem(str(self._path), 0, "gateway.enabled", wrong, right))
        return out

    def _no(self, problems: tuple[Problem, ...]) -> ReloadAnswer:
        first = Event(
            EventName.RELOAD_REFUSED,
            Severity.ERROR,
            f"{self._path} is refused with {len(problems)} problem(s); "
            "the configuration in force stays",
        )
        said = [str(one) for one in problems[:MOST_SAID]]
        if len(problems) > MOST_SAID:
            more = len(problems) - MOST_SAID
            said.append(f"{more} further problems: arbiterctl check {self._path}")
        each = tuple(Event(EventName.CONFIG_REFUSED, Severity.ERROR, one) for one in said)
        self._post(Refused(tuple(str(one) for one in problems), (first, *each)))
        return ReloadAnswer(accepted=False, mode=self._newest().mode, problems=problems)

    def look(self, now: float) -> None:
        """Notice an edited file (a stat a second). It is read aside: it may have become a pipe, or lie
        on a disk that hangs.
        """
        if not self._looking and now - self._looked_at >= PENDING_EVERY_S:
            self._looked_at, self._looking = now, True
            aside(self._look_aside, name="config")

    def _look_aside(self) -> None:
        with suppress(OSError):
            info = os.stat(self._path)
            stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
            # Not quite written yet? Then the next look sees another size and reads again.
            if stamp != self._seen and stat.S_ISREG(info.st_mode):
                raw = bounded.read(self._path, bounded.CONFIG_BYTES)
                self._seen, self._sha = stamp, hashlib.sha256(raw).hexdigest()
            if self._sha:
                self._post(FileChanged(self._sha))
        self._looking = False
