"""A seeded loop of SIGKILLs of daemon, load gate and HAProxy at random moments, each followed by the
closing check. Engines keep their processes through all of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

from tests.faults.closing import calm, look, service_back
from tests.faults.play import Make
from tests.faults.row import Result
from tests.faults.stage import Missing, Size, Stage, until

WITHIN_S = 60.0
_MOMENT_S = 1.2  # the daemon ticks ten times in it, and keeps its state once


def kills(make: Make, count: int, seed: int, where: str) -> Iterator[Result]:
    """``count`` results; the order is the seed's."""
    dice = random.Random(seed)
    stage: Stage | None = None
    size: Size | None = None
    try:
        for number in range(count):
            target = dice.choice(("daemon", "daemon", "gate", "haproxy-worker", "haproxy-master"))
            wait_s, busy = dice.uniform(0, _MOMENT_S), dice.random() < 0.5
            began = time.monotonic()
            try:
                if stage is None:
                    stage = make()
                    service_back(stage, time.monotonic(), 120)
                    calm(stage, look(stage), (), ())
                    size = stage.size(stage.daemon_pid())
                seconds, verdict, why = _one(stage, size, target, wait_s, busy=busy), "ok", ""
            except (Missing, OSError) as error:
                seconds, verdict, why = -1.0, "failed", str(error)[-1800:]
                if stage is not None:
                    stage.close()
                    stage = None
            yield Result(f"kill-{where}-{seed}-{number}", f"SIGKILL {target}", where,
                         "back by itself; engines' processes unchanged", verdict,
                         round(seconds, 2) if verdict == "ok" else None, why, round(time.monotonic() - began, 1))  # fmt: skip
    finally:
        if stage is not None:
            stage.close()


def _one(stage: Stage, size: Size | None, target: str, wait_s: float, *, busy: bool) -> float:
    before = look(stage, size)
    if busy:  # something is under way: a reload is taken, its files are written
        stage.hup()
    time.sleep(wait_s)
    pid = _victim(stage, target)
    since = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    if target == "daemon":
        until(lambda: stage.daemon_pid() != pid, "the daemon to end")
        stage.revive()
    seconds = service_back(stage, since, WITHIN_S)
    calm(stage, before, (), ("adopted",) if target == "daemon" else ())
    return seconds


def _victim(stage: Stage, target: str) -> int:
    if target == "daemon":
        return int(until(stage.daemon_pid, "a daemon"))
    if target == "gate":
        return int(until(stage.gate_pid, "a load gate"))
    pids = until(stage.haproxy_pids, "HAProxy")
    return int(pids[0] if target == "haproxy-master" else pids[-1])
