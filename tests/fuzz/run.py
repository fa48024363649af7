"""One target in a process of its own: ``python -m tests.fuzz.run ROOM TARGET ENGINE SECONDS SEED``.

ROOM is the module of the target, ENGINE ``hypothesis`` or ``coverage`` (atheris, libFuzzer). What was found and how many inputs there were
goes to standard output as JSON lines, the count again and again: a hang or a death loses nothing. A defect
that is known already is passed over, so that the run goes on to the next one.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tests.fuzz.target import Defect, Target, judge

MEMORY_MAX = 3 << 30  # of address space: beyond it a MemoryError is the defect
ROUND = 100  # inputs per round of hypothesis
SAY_EVERY = 256
HANG_S = 20.0  # of CPU in one input: it is given up, and told


class Hang(Exception):
    """An input does not come to its end."""


class Session:
    """Counts, and tells what is new."""

    def __init__(
        self, target: Target, say: Callable[[dict[str, Any]], None], hang_s: float = HANG_S
    ) -> None:
        self.target, self._say, self._hang_s = target, say, hang_s
        signal.signal(signal.SIGVTALRM, late)
        self.inputs = 0
        self.known: set[str] = set()
        self.last: tuple[Defect, bytes] | None = None

    def one(self, data: bytes) -> None:
        """Judge one input.

        Raises:
            Defect: a new one.

        """
        self.inputs += 1
        if self.inputs % SAY_EVERY == 0:
            self.count()
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, self._hang_s, self._hang_s)
            try:
                judge(self.target, data)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except Defect as defect:
            if defect.sign in self.known:
                return
            self.last = defect, data
            raise

    def found(self) -> None:
        """Tell the defect that was seen last, and pass it over from now on."""
        if self.last is None:
            return
        defect, data = self.last
        self.last = None
        self.known.add(defect.sign)
        self._say({
            "sign": defect.sign, "text": str(defect), "input": base64.b64encode(data).decode(),
        })  # fmt: skip

    def count(self) -> None:
        """How many inputs so far, and the most memory so far (KiB)."""
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._say({"inputs": self.inputs, "rss_kib": most})


def late(number: int, frame: object) -> None:
    """SIGVTALRM."""
    msg = "no end"
    raise Hang(msg)


def by_hypothesis(session: Session, seconds: float, number: int) -> None:
    """Rounds of inputs from the strategy; a failing one is made smaller before it is told."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number += 1

        @seed(number)
        @settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(session.target.strategy)
        def rounds(data: bytes) -> None:
            session.one(data)

        try:
            rounds()
        except (Defect, Flaky, ExceptionGroup):
            session.found()


def by_coverage(make: Callable[[], Session], seconds: float, number: int) -> None:
    """LibFuzzer over bytes, led by the branches that an input reaches. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["arbiterd"]):
        session = make()

    def one(data: bytes) -> None:
        try:
            session.one(data)
        except Defect:
            session.found()

    folder = Path(tempfile.mkdtemp(prefix="gpua-fuzz-", dir=os.environ.get("FUZZ_HOME")))
    for index, given_ in enumerate(session.target.seeds):
        (folder / str(index)).write_bytes(given_)
    limits = [f"-max_total_time={seconds:.0f}", f"-seed={number}", "-max_len=8192", "-rss_limit_mb=0",
              "-verbosity=0", "-print_final_stats=0", "-len_control=0"]  # fmt: skip
    atheris.Setup([sys.argv[0], *limits, str(folder)], one)
    atheris.Fuzz()


def main() -> int:
    """Run."""
    room, name, engine, seconds, number = sys.argv[1:6]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    logging.disable(logging.CRITICAL)
    out = os.dup(1)

    def say(row: dict[str, Any]) -> None:
        os.write(out, json.dumps(row).encode() + b"\n")

    def make() -> Session:
        targets = import_module(room).TARGETS  # only now: atheris instruments what is imported
        return Session(next(one for one in targets if one.name == name), say)

    if engine == "coverage":
        by_coverage(make, float(seconds), int(number))
        return 0
    session = make()
    by_hypothesis(session, float(seconds), int(number))
    session.count()
    return 0


if __name__ == "__main__":
    sys.exit(main())
