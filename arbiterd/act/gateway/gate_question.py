"""Whether the load gate answers, asked in a thread: a hung one must not hold up HAProxy's counters."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from arbiterd import aside
from arbiterd.gateway.runtime import GatewayGone, ask

LIMIT_S = 1.5  # it answers within milliseconds: no body blocks its loop (loadgate/incoming.py)
WAIT_S = 0.05  # one that is well answers within it; a hung one costs its caller no more a turn


class GateQuestion:
    """One question at a time. ``out``: it has been asked and nobody has taken the answer. ``began`` and
    ``ended``: of the last one (monotonic seconds).
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._thread: threading.Thread | None = None
        self._said: str | GatewayGone = ""
        self.began = self.ended = 0.0

    @property
    def out(self) -> bool:
        """Whether a question is under way."""
        return self._thread is not None

    def asked(self) -> str | GatewayGone | None:
        """Its answer, asked for now unless a question is under way; None while there is none yet."""
        if self._thread is None:
            thread = aside.thread(self._ask, name="gate-question")
            try:
                thread.start()
            except RuntimeError:  # pids are used up: asked in a later turn
                return None
            self._thread = thread
        self._thread.join(WAIT_S)
        if self._thread.is_alive():
            return None
        self._thread = None
        return self._said

    def _ask(self) -> None:
        self.began = time.monotonic()
        try:
            self._said = ask(self._socket, "GET /livez HTTP/1.0\r\n\r", LIMIT_S)
        except GatewayGone as gone:
            self._said = gone
        self.ended = time.monotonic()
