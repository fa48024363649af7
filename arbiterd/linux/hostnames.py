"""Names of this machine. The FQDN may take a resolver's time-out: it is looked up aside, once."""

from __future__ import annotations

import socket
from contextlib import suppress

from arbiterd import aside

_PATIENCE_S = 0.5  # for the first to ask; whoever asks later gets what is known by then


class HostNames:
    """``names`` grows once, when the FQDN is known."""

    def __init__(self) -> None:
        self._found: tuple[str, ...] = (socket.gethostname(),)
        self._thread = aside.thread(self._look, name="hostnames")
        self._first = True

    def names(self) -> tuple[str, ...]:
        """Hostname, and the FQDN once it is known."""
        if self._first:
            self._first = False
            self._thread.start()
            self._thread.join(_PATIENCE_S)
        return self._found

    def _look(self) -> None:
        with suppress(OSError):
            self._found = tuple(dict.fromkeys((*self._found, socket.getfqdn())))
