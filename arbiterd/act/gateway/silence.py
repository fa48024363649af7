"""How long something has not answered, counted only while we ourselves were on time."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

LATE_S: Final = (
    1.0  # a question that took so much longer than its limit: we were stopped or starved
)
GAP_S: Final = 3.0  # beyond a question's limit: two that lie further apart prove the same


@dataclass(slots=True)
class Silence:
    """``limit_s``: how long one question waits. ``since``: when the first of the unanswered questions was
    asked (monotonic seconds), None while it answers or nobody can say.
    """

    limit_s: float
    since: float | None = None
    last: float = 0.0

    def heard(self) -> None:
        """It has answered, or is gone: not silent."""
        self.since = None

    def missed(self, asked: float, ended: float) -> float:
        """A question without an answer; returns the seconds of silence so far, 0 while we were late."""
        apart = self.since is not None and asked - self.last > self.limit_s + GAP_S
        if ended - asked > self.limit_s + LATE_S or apart:
            self.since = None
        elif self.since is None:
            self.since = asked
        self.last = ended
        return 0.0 if self.since is None else ended - self.since


def door_answers(bind: str, port: int, wait_s: float) -> bool:
    """Whether anything comes back from this door, be it the end of the connection: the kernel takes
    connections for a process that is stopped, too.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # nosec B104 # names, binds nothing
    try:
        with socket.create_connection((host, port), wait_s) as one:
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            one.recv(1)
    except (TimeoutError, ConnectionRefusedError):
        return False
    except OSError:
        return True
    return True
