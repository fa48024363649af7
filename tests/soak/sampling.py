"""What the daemon, its NVML worker, the load gate and HAProxy use: memory, descriptors, threads, lateness."""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.soak.trouble import children
from tests.support.host import Host

EVERY_S = 5.0
LOOK_S = 0.2  # how often the age of the last tick is read
WHO = ("daemon", "worker", "gate", "haproxy")
_KIB = 1024
_TICKS = re.compile(rb"^gpu_arbiter_ticks_total (\S+)$", re.MULTILINE)
_AGE = re.compile(rb"^gpu_arbiter_tick_age_seconds (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """At ``at`` seconds since the start. ``values``: by (process, what); a process that is not there
    at the moment has none. ``pids``: of each.
    """

    at: float
    values: dict[tuple[str, str], float]
    pids: dict[str, tuple[int, ...]]


@dataclass
class Ages:
    """Ages of the last tick as the API tells them, and how often it did not answer."""

    seen: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    missed: int = 0


class Sampler:
    """Two threads: one reads /proc each EVERY_S seconds, one asks the API for the tick's age."""

    def __init__(self, host: Host, poll_s: float) -> None:
        self.host, self.poll_s = host, poll_s
        self.samples: list[Sample] = []
        self.missed = 0
        self._ages = Ages()
        self._ticks = (0.0, 0.0)
        self._end = threading.Event()
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=one, daemon=True) for one in (self._run, self._ask)
        ]

    def start(self) -> None:
        """Begin."""
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        """End."""
        self._end.set()
        for one in self._threads:
            one.join()

    def _run(self) -> None:
        while not self._end.wait(EVERY_S):
            self.samples.append(self._sample())

    def _ask(self) -> None:
        with requests.Session() as via:
            via.trust_env = False
            while not self._end.wait(LOOK_S):
                began = time.monotonic()
                try:
                    text = via.get(self.host.url("/metrics"), timeout=10).content
                except requests.RequestException:
                    self._ages.missed += 1
                    continue
                age, ticks = _AGE.search(text), _TICKS.search(text)
                if age and ticks:
                    self._ages.seen.append(float(age[1]))
                    self._ages.took.append(time.monotonic() - began)
                    self._ticks = (time.monotonic(), float(ticks[1]))

    def _sample(self) -> Sample:
        values: dict[tuple[str, str], float] = {}
        found = self._who()
        for who, pids in found.items():
            seen = [one for one in map(_process, pids) if one]
            for what in seen[0] if seen else ():
                values[who, what] = sum(one[what] for one in seen)
            if who == "haproxy" and seen:
                values[who, "processes"] = len(seen)
        ages, self._ages = self._ages, Ages()
        self.missed += ages.missed
        if ages.seen:
            late = sorted(max(0.0, age - self.poll_s) * 1000 for age in ages.seen)
            values["daemon", "tick late, mean ms"] = statistics.fmean(late)
            values["daemon", "tick late, max ms"] = late[-1]
            values["daemon", "API answer, median ms"] = statistics.median(ages.took) * 1000
        for what, folder in (("state_dir", "state"), ("runtime_dir", "run")):
            count, size = _folder(self.host.home / folder)
            values[what, "files"], values[what, "KiB on disk"] = count, size / _KIB
        return Sample(time.monotonic() - self._began, values, found)

    def _who(self) -> dict[str, tuple[int, ...]]:
        assert self.host.process is not None
        daemon = self.host.process.pid
        out: dict[str, list[int]] = {who: [] for who in WHO}
        out["daemon"] = [daemon]
        for pid in (*children(daemon), *self.host.services()):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"nvml_worker" in words:
                    out["worker"].append(pid)
                elif b"arbiterd.loadgate" in words:
                    out["gate"].append(pid)
                elif b"haproxy" in words.split(b"\0")[0]:
                    out["haproxy"].append(pid)
        return {who: tuple(sorted(set(pids))) for who, pids in out.items()}


def _process(pid: int) -> dict[str, float]:
    """Of one process, {} when it has ended."""
    with suppress(OSError, ValueError, KeyError):
        sizes = dict(
            line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )  # fmt: skip
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return {
            "RSS KiB": float(sizes["Rss:"]),
            "anonymous KiB": float(sizes["Anonymous:"]),
            "descriptors": float(len(os.listdir(f"/proc/{pid}/fd"))),
            "threads": float(status["Threads"]),
        }
    return {}


def _folder(path: Path) -> tuple[int, int]:
    """(files, bytes) below it."""
    count = size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                size += os.lstat(os.path.join(folder, name)).st_size
                count += 1
    return count, size
