"""HAProxy's log lines, one datagram each, folded into histograms per backend (model/door_log.py).

A flood is not followed to its end: beyond READ_PER_S lines a second the kernel drops the rest, and
HAProxy never waits for us.
"""

from __future__ import annotations

import bisect
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from arbiterd import aside
from arbiterd.files.placing import hand_over
from arbiterd.model import door_log
from arbiterd.model.gateway import BUCKETS_S, Requests

READ_PER_S = 4000
HOSTS_MAX = 20  # a scanner's inventions are not worth more
_BUFFER = 1 << 20


@dataclass(slots=True)
class _Sums:
    codes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    total: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    first: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_sum: float = 0.0
    first_sum: float = 0.0

    def add(self, line: door_log.Line) -> None:
        code, count = str(line.status), line.count
        self.codes[code] = self.codes.get(code, 0) + count
        if not line.proxy.startswith("be-"):
            self.refused[line.why or "-"] = self.refused.get(line.why or "-", 0) + count
            return
        total_s = max(0, line.total_ms) / 1000
        self.total[bisect.bisect_left(BUCKETS_S, total_s)] += count
        self.total_sum += total_s * count
        if line.first_ms >= 0:
            first_s = (line.first_ms + max(0, line.queued_ms)) / 1000
            self.first[bisect.bisect_left(BUCKETS_S, first_s)] += count
            self.first_sum += first_s * count

    def frozen(self) -> Requests:
        return Requests(
            dict(self.codes),
            dict(self.refused),
            _cumulative(self.total),
            self.total_sum,
            _cumulative(self.first),
            self.first_sum,
        )


def _cumulative(counts: list[int]) -> tuple[int, ...]:
    out, sum_ = [], 0
    for one in counts:
        sum_ += one
        out.append(sum_)
    return tuple(out)


class GatewayLog:
    """``latest`` is the loop's and never waits."""

    def __init__(self, path: Path, group: str = "") -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, _Sums] = {}
        self._dirty = False
        self._frozen: dict[str, Requests] = {}
        self._hosts: frozenset[str] = frozenset()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        self._closed = False
        hand_over(path, 0o660, group)
        self._thread = aside.thread(self._run, name="gateway-log")
        self._thread.start()

    def latest(self) -> dict[str, Requests]:
        """Sums so far; the same object while nothing came."""
        if self._dirty:
            with self._lock:
                self._frozen = {name: one.frozen() for name, one in self._sums.items()}
                self._dirty = False
        return self._frozen

    def unknown_hosts(self) -> frozenset[str]:
        """Names that doors were asked by and that are not this host's, the first HOSTS_MAX of them."""
        return self._hosts

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=2.0)
        self._socket.close()

    def _run(self) -> None:
        second, count = 0, 0
        while not self._closed:
            try:
                raw = self._socket.recv(65536)
            except OSError:
                return
            if not raw:
                return
            now = int(time.monotonic())
            count = count + 1 if now == second else 1
            second = now
            if count > READ_PER_S:
                time.sleep(0.05)
                continue
            self._take(raw)

    def _named(self, host: str) -> None:
        if host and host not in self._hosts and len(self._hosts) < HOSTS_MAX:
            self._hosts |= {host}

    def _take(self, raw: bytes) -> None:
        line = door_log.parse(raw)
        if line is None:
            return
        self._named(line.odd)
        if not line.backend or line.why == "health" or line.proxy == "gate":
            return  # what went through the gate is told by its inner door
        with self._lock:
            self._sums.setdefault(line.backend, _Sums()).add(line)
            self._dirty = True
