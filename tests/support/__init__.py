"""What many tests need: free ports, waiting with a deadline, processes that end with the test."""

from __future__ import annotations

import fcntl
import random
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from arbiterd.sim.gpu import cache_folder

T = TypeVar("T")
# A deadline only says when to give up: a busy machine may take many times what an idle one takes, and a
# wait that comes true costs no more by it. That something is quick is no matter of these tests.
PATIENCE_S = 120.0
_LOWEST, _HIGHEST = 12000, 21999  # below 32768, and room for "public port + 10000"
_LEDGER = cache_folder() / "test-ports"


def free_port() -> int:
    """A port nobody listens on and that no other test of this machine was given lately.

    Test workers share a small file of ports given out, so that two of them never pick the same.
    """
    with _LEDGER.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        given = [int(word) for word in file.read().split()][-2000:]
        for port in random.sample(range(_LOWEST, _HIGHEST), 4000):
            if port not in given and _is_free(port) and _is_free(port + 10000):
                file.seek(0)
                file.truncate()
                file.write(" ".join(str(one) for one in (*given, port)))
                return port
    msg = "no free port found"
    raise AssertionError(msg)


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(
    check: Callable[[], T], timeout_s: float = 10.0, what: str = "", every_s: float = 0.02
) -> T:
    """Poll until ``check()`` is truthy and return it; fail with ``what`` after ``timeout_s`` seconds, but
    never before PATIENCE_S.

    The pause is ``every_s`` at first. It grows with what has been waited (a twentieth, at most 0.1 s) and with
    what the check takes (twice that, at most 0.25 s): a waiting test leaves the machine to the others.
    """
    timeout_s = max(timeout_s, PATIENCE_S)
    began = time.monotonic()
    while True:
        looked = time.monotonic()
        value = check()
        if value:
            return value
        now = time.monotonic()
        if now - began >= timeout_s:
            msg = f"not within {timeout_s:g} s: {what or check}; last value {value!r}"
            raise AssertionError(msg)
        time.sleep(max(every_s, min(0.1, (now - began) / 20), min(0.25, 2 * (now - looked))))
