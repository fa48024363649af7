"""``python -m tests.faults``: play the table and the kills, print and write what came of them.

Two shards at a time, each a process of its own: the longest first. As root a shard has a mount namespace
of its own, so that its full and read-only disks are nobody else's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from arbiterd.sim.gpu import build
from tests.faults.direct import DirectStage
from tests.faults.figures import markdown, printed
from tests.faults.kills import kills
from tests.faults.play import play
from tests.faults.row import Fault, Result
from tests.faults.table import chosen, table

ROOT = Path(__file__).resolve().parents[2]
LIB_ENV = "FAULTS_LIB"
IN_BOX = ("kills-box", "box", "hybrid")
# Kinds that share a stage, the longest shard first.
SHARDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("direct", ("engine",)),
    ("direct", ("driver",)),
    ("direct", ("state", "config")),
    ("direct", ("daemon", "api", "gateway", "client")),
    ("disk", ("disk",)),
    ("direct", ("disk",)),
)


def main() -> int:
    """Everything, or what is asked for."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument(
        "patterns", nargs="*", help="ids, kinds or stages (shell patterns); default: all"
    )
    parser.add_argument(
        "--kills", type=int, default=-1, help="SIGKILLs; default 300, with patterns none"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the kills; default: drawn, and printed"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    if given.shard:
        return _shard(given.shard, given.patterns)
    rows = chosen(given.patterns)
    count = given.kills if given.kills >= 0 else 0 if given.patterns else 300
    seed = given.seed or random.SystemRandom().randrange(1, 10**6)
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    print(
        f"faults: {len(rows)} of {len(table())} rows, {count} SIGKILLs with seed {seed}", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="gpua-l-") as folder:
        os.environ[LIB_ENV] = str(build(Path(folder)))
        jobs = _jobs(rows, count, seed)
        if any(shard in IN_BOX for shard, _ in jobs):
            from tests.faults.boxes import TREE_ENV, install

            os.environ[TREE_ENV] = str(Path(folder) / "dest")
            install(Path(os.environ[TREE_ENV]))
        with ThreadPoolExecutor(given.workers) as pool:
            results = [one for part in pool.map(_run, jobs) for one in part]
    played = {one.id for one in results}
    results += [_unplayed(row) for row in rows if row.id not in played]
    took = time.monotonic() - began
    print(printed(results, took))
    (given.out / "results.json").write_text(json.dumps([asdict(one) for one in results], indent=1))
    (given.out / "results.md").write_text(markdown(results, took))
    print(f"faults: {given.out}/results.json and results.md")
    return int(any(one.verdict == "failed" for one in results))


def _unplayed(row: Fault) -> Result:
    why = _cannot(row)
    verdict = "skipped" if why else "failed"
    return Result(row.id, row.kind, row.stage, row.promise, verdict, None, why or "was not played")


_running: list[subprocess.Popen[str]] = []
_ending = threading.Event()  # what is still queued then does not start


def _end(number: int, _: object) -> None:
    """SIGTERM: the shards end what they have started, then themselves."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut the end short
    _ending.set()
    for one in _running:
        one.terminate()
    raise SystemExit(128 + number)


def _jobs(rows: Sequence[Fault], count: int, seed: int) -> list[tuple[str, list[str]]]:
    """(shard, arguments). Half of the kills under each launcher."""
    jobs: list[tuple[str, list[str]]] = []
    root = os.geteuid() == 0
    half = count // 2 if root else 0
    jobs += [("kills-box", [str(half), str(seed)])] if half else []
    jobs += [("kills-direct", [str(count - half), str(seed)])] if count else []
    for stage in IN_BOX[1:]:
        ids = [row.id for row in rows if row.stage == stage and root]
        jobs += [(stage, ids)] if ids else []
    for stage, kinds in SHARDS:
        ids = [row.id for row in rows if row.stage == stage and row.kind in kinds]
        jobs += [(stage, ids)] if ids else []
    return jobs


def _run(job: tuple[str, list[str]]) -> list[Result]:
    """A shard as a process; its lines are passed on as they come."""
    shard, words = job
    line = [sys.executable, "-m", "tests.faults", "--shard", shard, *words]
    if os.geteuid() == 0:
        line = ["unshare", "--mount", "--propagation", "private", "--", *line]
    out: list[Result] = []
    if _ending.is_set():
        return out
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        _running.append(process)
        for text in process.stdout:
            if not text.startswith("{"):
                print(text, end="", flush=True)
                continue
            one = Result(**json.loads(text))
            out.append(one)
            seconds = "" if one.seconds is None else f"{one.seconds:.1f} s"
            print(f"{one.verdict:8}{seconds:>8}  {one.id}  {one.why}", flush=True)
    return out


def _shard(shard: str, words: list[str]) -> int:
    for one in _results(shard, words):
        print(json.dumps(asdict(one)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of faults may still wait


def _results(shard: str, words: list[str]) -> Iterator[Result]:
    lib = Path(os.environ[LIB_ENV])

    def make() -> DirectStage:
        stage = DirectStage(lib, disk=shard == "disk")
        try:
            stage.start()
        except BaseException:  # SIGTERM, too: nothing that was started is left
            stage.close()
            raise
        return stage

    if shard == "kills-direct":
        yield from kills(make, int(words[0]), int(words[1]), "direct")
        return
    if shard == "kills-box":
        from tests.faults.boxes import in_box

        yield from in_box(lib, "unified", ["kills", *words])
        return
    rows = [row for row in table() if row.id in set(words)]
    missing = [(row, why) for row in rows if (why := _cannot(row))]
    yield from (
        Result(r.id, r.kind, r.stage, r.promise, "skipped", None, why) for r, why in missing
    )
    here = [row for row in rows if not _cannot(row)]
    if not here:
        return
    if shard in ("box", "hybrid"):
        from tests.faults.boxes import in_box

        yield from in_box(lib, {"box": "unified"}.get(shard, shard), [row.id for row in here])
    else:
        yield from play(here, make)


def _cannot(row: Fault) -> str:
    """Why this row cannot be played on this machine, "" when it can."""
    if row.stage != "direct" and os.geteuid() != 0:
        return "not root: no systemd box and no file systems of one's own"
    if row.stage == "hybrid" and ":memory:" not in Path("/proc/self/cgroup").read_text():
        return "this machine has no v1 controllers: a box's limits would not be enforced"
    if row.needs and not Path(row.needs).exists():
        return f"{row.needs} is missing: apt-get install faketime"
    return ""


if __name__ == "__main__":
    sys.exit(main())
