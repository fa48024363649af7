"""``make fuzz MINUTES=n``: every target for its share of the time, most of it led by coverage where atheris
installs; then schemathesis against the API of a running demo, and raw bytes at the doors of a real HAProxy and
load gate. Prints inputs, inputs a second and defects; exits with 1 when there is one.

The time is shared evenly: a third of it by structure (hypothesis), two thirds by coverage (atheris), a tenth
of the whole before that for what needs sockets. JOBS processes at a time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.sockets import ENDPOINTS
from tests.fuzz.table import TARGETS, room_of
from tests.fuzz.target import Target

CASES = Path(__file__).parent / "cases"
SOCKETS_SHARE = 0.1
COVERAGE_SHARE = 2 / 3
MEMORY_GROWN_KIB = 512 * 1024
LATE_S = 120.0  # beyond its time, and that of a start on a busy machine, it hangs in one input


@dataclass
class Tally:
    """What came of one target."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    rss_kib: int = 0
    defects: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def row(self) -> str:
        """A line of the table in docs/reliability.md."""
        rate = self.inputs / self.seconds if self.seconds else 0
        return f"| {self.name} | {self.inputs:,} | {rate:,.0f} | {self.rss_kib // 1024} | {len(self.defects)} |"


def run_one(target: Target, engine: str, seconds: float, seed: int, tally: Tally) -> None:
    """One process of one target."""
    argv = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.run", room_of(target), target.name, engine, f"{seconds:.0f}", str(seed)]  # fmt: skip
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log)
        try:
            said, _ = process.communicate(timeout=seconds * 1.5 + LATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            tally.defects["hang"] = f"no end after {seconds * 1.5 + LATE_S:.0f} s", b""
        log.seek(0)
        words = log.read()[-1500:].decode(errors="replace")
    tally.seconds += time.monotonic() - began
    inputs = 0
    for line in said.splitlines():
        row = json.loads(line)
        if "sign" in row:
            tally.defects[row["sign"]] = row["text"], base64.b64decode(row["input"])
        else:
            inputs = row["inputs"]
            tally.rss_kib = max(tally.rss_kib, row["rss_kib"])
    tally.inputs += inputs
    if process.returncode not in (0, -9) or not inputs:
        tally.defects[f"died {process.returncode}"] = words, b""


def main() -> int:
    """Share the time, run, tell."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--only", default="", help="targets whose name contains this")
    given = parser.parse_args()
    os.environ["PYTHONHASHSEED"] = "0"
    wanted = [one for one in TARGETS if given.only in one.name]
    sockets = [one for one in ENDPOINTS if given.only in one.name]
    led = find_spec("atheris") is not None
    if not led:
        print("fuzz: atheris is not installed here: hypothesis alone", flush=True)
    seconds = given.minutes * 60
    share = seconds * (1 - (SOCKETS_SHARE if sockets else 0)) * given.jobs / max(1, len(wanted))
    print(
        f"fuzz: {given.minutes:g} minutes, seed {given.seed}, {len(wanted)} targets of {share:.0f} s each"
    )
    tallies: list[Tally] = []
    for endpoint in sockets:
        tally = Tally(endpoint.name)
        began = time.monotonic()
        endpoint.play(seconds * SOCKETS_SHARE / len(sockets), given.seed, tally)
        tally.seconds = time.monotonic() - began
        tallies.append(tally)
        print(tally.row(), flush=True)

    def whole(target: Target) -> Tally:
        tally = Tally(target.name)
        by_coverage = share * COVERAGE_SHARE if led and target.coverage else 0.0
        run_one(target, "hypothesis", share - by_coverage, given.seed, tally)
        if by_coverage:
            run_one(target, "coverage", by_coverage, given.seed, tally)
        print(tally.row(), flush=True)
        return tally

    with ThreadPoolExecutor(given.jobs) as pool:
        tallies += pool.map(whole, wanted)
    return _tell(tallies)


def _tell(tallies: list[Tally]) -> int:
    print(
        "\n| target | inputs | inputs/s | memory, MiB | defects |\n| --- | --: | --: | --: | --: |"
    )
    for tally in tallies:
        print(tally.row())
    whole = Tally("all", sum(t.inputs for t in tallies), sum(t.seconds for t in tallies))
    whole.defects = {f"{t.name}: {sign}": one for t in tallies for sign, one in t.defects.items()}
    print(whole.row())
    for name, (text, data) in whole.defects.items():
        print(f"\n{name}\n  input {data[:2000]!r}\n  {text}")
    if whole.defects:
        print(
            f"\nkeep each input as {CASES.relative_to(Path.cwd())}/TARGET/NAME; tests/fuzz/test_fuzz.py plays it"
        )
    return 1 if whole.defects else 0


if __name__ == "__main__":
    sys.exit(main())
