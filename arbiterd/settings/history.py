"""Which accepted files a restart must know of, kept in runtime_dir.

last-good.toml     the configuration in force, for a start on a bad file
previous.toml      the one before, while a switch is under way: the way back survives our death
rolled-back.json   the digest of a file whose layout did not come up, and why: a restart of the daemon
                   must not try it again by itself; a reload does
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from arbiterd.config import Loaded, load
from arbiterd.errors import ConfigRefused, Problem
from arbiterd.files import bounded
from arbiterd.files.owned import NotTrusted, read_owned, top
from arbiterd.files.typed import build
from arbiterd.model.settings import Settings
from arbiterd.store import atomic
from arbiterd.store.json_store import JsonStore

LAST_GOOD = "last-good.toml"
PREVIOUS = "previous.toml"
ROLLED_BACK = "rolled-back.json"
PRIVATE = 0o600  # a configuration may hold `env` of a backend


@dataclass(frozen=True, slots=True)
class _RolledBack:
    sha256: str
    reason: str


class Layouts:
    """The three files. A failure to write costs only what they are for. Thread-safe."""

    def __init__(self, runtime_dir: Path) -> None:
        runtime_dir = top(runtime_dir)
        self._good = runtime_dir / LAST_GOOD
        self._previous = runtime_dir / PREVIOUS
        self._rolled_back: JsonStore[_RolledBack | None] = JsonStore(
            runtime_dir / ROLLED_BACK,
            lambda row: build(_RolledBack, row),
            lambda one: asdict(one) if one else None,
            absent=None,
            mode=PRIVATE,
        )
        self._texts: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def started(self, text: str, *, alive: bool) -> None:
        """The daemon starts on this text. ``alive``: beside engines of another text it is a switch."""
        with self._lock:
            if alive and _digest(self._good) not in ("", _sha(text.encode())):
                self._keep_previous()
            self._put_good(text)

    def accepted(self, text: str) -> None:
        """A reload was accepted; until it has come through, the one before is kept beside it."""
        with self._lock, suppress(OSError):
            self._keep_previous()
            self._put_good(text)
            self._rolled_back.path.unlink(missing_ok=True)

    def rolled_back(self, failed_sha: str, reason: str) -> None:
        """The layout before comes back. ``reason``: why the newer one, of this digest, did not come up."""
        with self._lock, suppress(OSError):
            if _digest(self._good) != failed_sha:  # a newer one was accepted in this very moment
                return
            with suppress(OSError):
                self._rolled_back.put(_RolledBack(failed_sha, reason))
            _put(self._good, read_owned(self._previous))

    def settled(self, sha: str) -> None:
        """The layout of this digest has come through, by a switch or a rollback."""
        with self._lock, suppress(OSError):
            text = self._texts.get(sha)
            if text is None or _digest(self._good) == sha:
                self._previous.unlink(missing_ok=True)
                self._texts = {sha: text} if text is not None else {}
            else:  # a newer one waits already: from now on this is the one before it
                _put(self._previous, text)

    def _keep_previous(self) -> None:
        if not self._previous.exists() and self._good.exists():
            _put(self._previous, read_owned(self._good))

    def _put_good(self, text: str) -> None:
        self._texts[_sha(text.encode())] = text.encode()
        _put(self._good, text.encode())

    def refused(self, path: Path) -> str:
        """Why the file at ``path`` is not to be tried again by a start, "" when it may be."""
        one, _ = self._rolled_back.look()
        with suppress(OSError):
            if one is not None and one.sha256 == _sha(bounded.read(path, bounded.CONFIG_BYTES)):
                return one.reason
        return ""

    def last_good(self, path: Path, environ: Mapping[str, str]) -> Loaded | None:
        """The configuration that was in force last, under the name of the real file."""
        return _load(self._good, path, environ)

    def distrusted(self) -> list[str]:
        """Which of the files are there and not believed, or unreadable, as sentences."""
        self._rolled_back.load()
        out = [*self._rolled_back.problems]
        for path in (self._good, self._previous):
            try:
                read_owned(path)
            except NotTrusted as error:
                out.append(f"{error}; it is not used")
            except OSError:
                continue
        return out

    def before(self, path: Path, environ: Mapping[str, str]) -> Settings | None:
        """The layout to go back to, when a switch was under way as the daemon died."""
        found = _load(self._previous, path, environ)
        return found.settings if found else None


def rolled_back_problem(path: Path, reason: str) -> Problem:
    """What is said of a file whose layout was rolled back."""
    wrong = f"its layout did not come up and was rolled back: {reason}"
    right = "mend it, or try it again: systemctl reload gpu-arbiter"
    return Problem(str(path), 0, "mode", wrong, right)


def _load(kept: Path, path: Path, environ: Mapping[str, str]) -> Loaded | None:
    if not kept.exists():
        return None
    try:
        read_owned(kept)  # it names commands and users: another user's is not even parsed
        loaded = load(kept, environ)
    except (ConfigRefused, OSError):
        return None
    source = replace(loaded.settings.source, path=str(path))
    return replace(loaded, settings=replace(loaded.settings, source=source))


def _put(path: Path, text: bytes) -> None:
    with suppress(OSError):
        atomic.write(path, text, mode=PRIVATE)


def _sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _digest(path: Path) -> str:
    """Of a file, "" when it is not there."""
    with suppress(OSError):
        return _sha(read_owned(path))
    return ""
