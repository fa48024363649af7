"""The three files that a restart must know of (core/mode/config_state.py says which), in runtime_dir."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from arbiterd.config import Loaded, load
from arbiterd.core.mode.config_state import Disk, File, Kept, Write
from arbiterd.errors import ConfigRefused
from arbiterd.files import bounded
from arbiterd.files.owned import NotTrusted, read_owned, top
from arbiterd.files.typed import build
from arbiterd.model.settings import Settings
from arbiterd.store import atomic
from arbiterd.store.json_store import JsonStore

PRIVATE = 0o600  # a configuration may hold `env` of a backend


@dataclass(frozen=True, slots=True)
class _RolledBack:
    sha256: str
    reason: str


class ConfigFiles:
    """Read at the start, written by the loop's thread. A failure to write costs only what a file is for."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = top(runtime_dir)
        self._rolled_back: JsonStore[_RolledBack] = JsonStore(
            runtime_dir / File.ROLLED_BACK,
            lambda row: build(_RolledBack, row),
            asdict,
            absent=_RolledBack("", ""),
        )

    def read(self) -> Disk:
        """What of them is there and believed."""
        found, _ = self._rolled_back.look()
        good, previous = self._kept(File.LAST_GOOD), self._kept(File.PREVIOUS)
        return Disk(good, previous, found.sha256, found.reason)

    def apply(self, writes: Iterable[Write]) -> None:
        """In this order."""
        for file, text in writes:
            with suppress(OSError):
                if text is None:
                    (self._folder / file).unlink(missing_ok=True)
                else:
                    atomic.write(self._folder / file, text.encode(), mode=PRIVATE)

    def instead(self, path: Path, environ: Mapping[str, str]) -> tuple[Loaded | None, str]:
        """What a start uses instead of the file at ``path``, whose layout was rolled back, and why."""
        disk = self.read()
        with suppress(OSError):
            sha = hashlib.sha256(bounded.read(path, bounded.CONFIG_BYTES)).hexdigest()
            kept = disk.instead(sha)
            if kept.sha:
                file = File.LAST_GOOD if kept == disk.good else File.PREVIOUS
                return self._load(file, path, environ), disk.reason
        return None, ""

    def last_good(self, path: Path, environ: Mapping[str, str]) -> Loaded | None:
        """The configuration that was in force last, under the name of the real file."""
        return self._load(File.LAST_GOOD, path, environ)

    def before(self, path: Path, environ: Mapping[str, str]) -> Settings | None:
        """The layout to go back to, when a switch was under way as the daemon died."""
        found = self._load(File.PREVIOUS, path, environ)
        return found.settings if found else None

    def distrusted(self) -> list[str]:
        """Which of the files are there and not believed, or unreadable, as sentences."""
        self._rolled_back.load()
        out = [*self._rolled_back.problems]
        for file in (File.LAST_GOOD, File.PREVIOUS):
            try:
                read_owned(self._folder / file)
            except NotTrusted as error:
                out.append(f"{error}; it is not used")
            except OSError:
                continue
        return out

    def _load(self, file: File, path: Path, environ: Mapping[str, str]) -> Loaded | None:
        kept = self._folder / file
        try:
            read_owned(kept)  # it names commands and users: another user's is not even parsed
            loaded = load(kept, environ)
        except (ConfigRefused, OSError):
            return None
        source = replace(loaded.settings.source, path=str(path))
        return replace(loaded, settings=replace(loaded.settings, source=source))

    def _kept(self, file: File) -> Kept:
        with suppress(OSError, UnicodeDecodeError):
            text = read_owned(self._folder / file)
            return Kept(hashlib.sha256(text).hexdigest(), text.decode())
        return Kept()
