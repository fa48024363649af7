"""HAProxy's log lines, one datagram a request, folded into histograms per backend.

A flood is not followed to its end: beyond READ_PER_S lines a second the kernel drops the rest, and
HAProxy never waits for us. Exact counts come from ``show stat``; this is for distributions.
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
from arbiterd.files import strict_json
from arbiterd.files.placing import hand_over
from arbiterd.model.gateway import BUCKETS_S, Requests

READ_PER_S = 2000
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
        if host not in ("", "-") and host not in self._hosts and len(self._hosts) < HOSTS_MAX:
            self._hosts |= {host}

    def _take(self, raw: bytes) -> None:
        start = raw.find(b"{")
        try:
            line = strict_json.loads(raw[start:].rstrip(b"\0\n"))
            self._named(str(line.get("odd") or ""))
            backend, why = str(line["b"]), str(line["why"])
            status, proxy = int(line["st"]), str(line["be"])
            total_s, first_ms = int(line["ta"]) / 1000, int(line["tr"])
            queued_ms = max(0, int(line["tw"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if not backend or backend == "-" or why == "health" or proxy == "gate":
            return  # what went through the gate is told by its inner door
        with self._lock:
            sums = self._sums.setdefault(backend, _Sums())
            sums.codes[str(status)] = sums.codes.get(str(status), 0) + 1
            if not proxy.startswith("be-"):
                sums.refused[why] = sums.refused.get(why, 0) + 1
            else:
                sums.total[bisect.bisect_left(BUCKETS_S, total_s)] += 1
                sums.total_sum += total_s
                if first_ms >= 0:
                    first_s = (first_ms + queued_ms) / 1000
                    sums.first[bisect.bisect_left(BUCKETS_S, first_s)] += 1
                    sums.first_sum += first_s
            self._dirty = True
