"""Keys: what an engine demands, and what the doors demand. Read from files, held nowhere else.

A key never becomes a part of settings, observations or decisions: those are published, journalled and
recorded. Who needs one asks here, by the backend's settings.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from arbiterd.engines import engine_of
from arbiterd.engines.shell_line import assignments
from arbiterd.files import bounded, env_text
from arbiterd.files.env_text import keys_in
from arbiterd.model.settings import BackendSettings

# what an HTTP header can carry; a line's end would also break the files of keys, one a line
_SENT = re.compile(r"[ -~\u00a0-\u00ff]+")
_MAX_BYTES = 1024 * 1024  # a file of keys; /dev/zero by mistake must not fill the memory


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: tuple[int, int, int]
    text: str


class Keyring:
    """Reads each file again when it has changed. Every method may be called by any thread.

    ``refusing``: backends whose last answer to the arbiter was 401, with the key it knows or without one.
    ``keep`` is told them when they change, for the next daemon: an engine that is down when the daemon
    starts cannot say again that it demands a key, and its substitute must not open what that guards.
    """

    def __init__(
        self,
        refusing: frozenset[str] = frozenset(),
        keep: Callable[[frozenset[str]], None] = lambda _: None,
    ) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, _Read] = {}
        self.refusing, self._keep = refusing, keep

    def engine(self, backend: BackendSettings) -> tuple[str, ...]:
        """The keys that this engine takes, the first one to send; () when it demands none, or none
        that can be known (a file that cannot be read, a key it makes up itself).
        """
        variables = {**self._variables(backend), **assignments(backend.command)}
        found = engine_of(backend.kind).keys(backend, variables)
        return tuple(key for key in found if _SENT.fullmatch(key))

    def value(self, backend: BackendSettings, name: str) -> str:
        """What this variable is at the backend's start by ``env`` and env_file, "" when it is not set."""
        return self._variables(backend).get(name, "")

    def _variables(self, backend: BackendSettings) -> Mapping[str, str]:
        if not backend.env_file:
            return backend.env
        return {**env_text.parse(self._text(backend.env_file)), **backend.env}

    def heard(self, name: str, status: int) -> None:
        """An engine's answer to a request that its key guards; the daemon's probes tell it."""
        with self._lock:
            before = self.refusing
            if status == 401:
                self.refusing |= {name}
            elif status == 200:
                self.refusing -= {name}
            if self.refusing != before:
                self._keep(self.refusing)

    def bearer(self, backend: BackendSettings) -> dict[str, str]:
        """The header that opens this engine, {} when no key is known."""
        keys = self.engine(backend)
        return {"Authorization": f"Bearer {keys[0]}"} if keys else {}

    def doors(self, path: str) -> tuple[str, ...]:
        """The keys of ``[gateway] key_file``, () when it cannot be read."""
        return keys_in(self._text(path))

    def _text(self, path: str) -> str:
        """The file, "" when it cannot be read: then nobody has the key, and the doors stay shut."""
        try:
            info = bounded.stat(path)
            stamp = (info.st_mtime_ns, info.st_ino, info.st_size)
            with self._lock:
                known = self._files.get(path)
            if known is not None and known.stamp == stamp:
                return known.text
            text = bounded.regular(path, bounded.FILE_BYTES).decode(errors="replace")
        except OSError:
            return ""
        with self._lock:
            self._files[path] = _Read(stamp, text)
        return text
