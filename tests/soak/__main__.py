"""``make soak MINUTES=n [SEED=n] [OUT=samples.json]``: load and random faults on the simulated host.

Prints a table of slopes, and exits with 1 when something grows, when an engine does not come back after
the last fault, or when a process is left over. The first twenty minutes (of a short run: a third) are
warm-up: each fault once, and what the interpreter makes larger once (docs/reliability.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from arbiterd.core.limits import INCIDENTS_KEPT
from arbiterd.model.events import ActionRecord, EventName, Incident, Severity
from arbiterd.sim.gpu import build
from arbiterd.store.incidents import IncidentStore
from tests.soak.sampling import WHO, Sampler
from tests.soak.trouble import Trouble
from tests.soak.verdict import restarts, table, trends
from tests.support import wait_until
from tests.support.host import SHARED, Host

WARM_UP_S = 1200.0
POLL_S = 0.25  # the daemon's default
SAY_EVERY_S = 60.0
MODES = (
    SHARED
    + """
[modes.B]
tensorflow = { gpu = 0 }
vllm = { gpu = 1, memory = "75%" }
ollama = { gpu = 1, memory = "20%" }

[[failover]]
model = "Qwen/Qwen2.5-3B-Instruct"
from = "vllm"
to = "ollama"
source = "qwen2.5:3b"
"""
)


def past(now: float) -> tuple[Incident, ...]:
    """The incidents that a host of some weeks keeps: as many as there can be, or a daemon that fills an
    empty list of a bounded length would look as if it leaked (measured: 3.9 MiB in the first hour).
    """
    out = []
    for number in range(INCIDENTS_KEPT):
        at = now - 3600.0 * (number + 2)
        actions = tuple(
            ActionRecord(f"act-{number:06x}-{n}", "StopBackend", "vllm", "main process ended unasked (signal 9)",
                         at + n, 1234.5, 13 << 30, 12 << 30, "done")
            for n in range(3)
        )  # fmt: skip
        out.append(
            Incident(f"inc-{number:06x}", EventName.EXIT, Severity.ERROR, at,
                     f"vllm: main process ended unasked (signal 9), start {number} follows", "vllm",
                     "GPU-d391808f-e400-4976-8463-ed4b0916c712", at + 30.0, (4000 + number, 5000 + number),
                     (("last words", f"line {number} " * 20), ("cause", "killed")), actions)
        )  # fmt: skip
    return tuple(out)


class Soak:
    """One run in a folder of its own."""

    def __init__(self, home: Path, seed: int) -> None:
        self.seed = seed
        (home / "h").mkdir()
        self.host = Host(home / "h", build(home / "lib"), ("rtx4090-24g",) * 2, gateway=True)
        self.host.grpc = True
        self.host.write(MODES)
        text = self.host.config.read_text().replace(
            'poll = "100ms"', f'poll = "{POLL_S * 1000:.0f}ms"'
        )
        text = text.replace('models = ["qwen2.5:3b"]', 'models = ["qwen2.5:3b", "qwen2.5:7b"]')
        self.host.config.write_text(text)
        store = IncidentStore(self.host.home / "state")
        store.save(past(time.time()))
        store.close()
        self.sampler = Sampler(self.host, POLL_S)
        self.answers: Counter[str] = Counter()

    def run(self, minutes: float) -> list[str]:
        """What is wrong, [] when nothing is."""
        host = self.host
        host.start()
        host.wait_ready()
        trouble = Trouble(host, self.seed)
        load = self._load()
        try:
            ended = self._play(minutes, trouble)
        finally:
            load.terminate()
            said, _ = load.communicate(timeout=60)
        if ended:
            return [ended]
        self.answers = Counter(json.loads(said))
        return self._judge(minutes, trouble)

    def _play(self, minutes: float, trouble: Trouble) -> str:
        """Faults and samples until the time is up; "" or how the daemon ended before."""
        host = self.host
        began = time.monotonic()
        self.sampler.start()
        trouble.start()
        while (passed := time.monotonic() - began) < minutes * 60:
            time.sleep(min(SAY_EVERY_S, minutes * 60 - passed))
            self._say(time.monotonic() - began, trouble)
            if host.process is None or host.process.poll() is not None:
                return f"the daemon ended: {host.log.read_text()[-3000:]}"
        trouble.stop()
        self.sampler.stop()
        return ""

    def _load(self) -> subprocess.Popen[str]:
        ports = self.host.home / "ports.json"
        ports.write_text(json.dumps({**self.host.ports, "api": self.host.listen}))
        argv = [sys.executable, "-m", "tests.soak.load", str(ports), str(self.seed)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def _say(self, passed: float, trouble: Trouble) -> None:
        if not self.sampler.samples:
            return
        last = self.sampler.samples[-1].values
        words = ", ".join(f"{who} {last.get((who, 'RSS KiB'), 0) / 1024:.1f} MiB" for who in WHO)
        late = last.get(("daemon", "tick late, max ms"), 0)
        print(f"{passed / 60:6.1f} min  faults {trouble.counts.total()}  {words}  late {late:.0f} ms  "
              f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip

    def _judge(self, minutes: float, trouble: Trouble) -> list[str]:
        host, samples = self.host, self.sampler.samples
        wrong = []
        try:
            host.wait_ready()
        except AssertionError as error:
            wrong.append(f"service did not return after the last fault: {str(error)[:2000]}")
        found = trends(samples, min(WARM_UP_S, minutes * 20))
        print(
            f"\nfaults: {trouble.report()}\nanswers: {json.dumps(dict(sorted(self.answers.items())))}"
        )
        print(f"restarts: {({who: restarts(samples, who) for who in WHO})}; "
              f"API not answered {self.sampler.missed} times; faults that failed: {trouble.errors}")  # fmt: skip
        print(f"\n{table(found)}\n")
        wrong += [
            f"{t.who} {t.what}: {t.slope:+.1f} an hour, bound {t.bound:.0f}"
            for t in found
            if t.grows
        ]
        status = host.stop()
        if status:
            wrong.append(f"the daemon's exit status is {status}")
        try:
            wait_until(lambda: not host.tagged() and not host.services(), 30)
        except AssertionError:
            wrong.append(f"left over: {host.tagged()} {host.services()}")
        return wrong


def main() -> int:
    """Run, judge."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", default="", help="all samples, as JSON lines")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # nothing is left over
    home = Path(tempfile.mkdtemp(prefix="gpua-soak-"))
    soak = Soak(home, given.seed)
    try:
        print(f"soak: {given.minutes:g} minutes, seed {given.seed}, in {home}", flush=True)
        wrong = soak.run(given.minutes)
    finally:
        soak.host.close()
        if given.out:
            lines = [
                json.dumps([s.at, {"/".join(k): v for k, v in s.values.items()}, s.pids])
                for s in soak.sampler.samples
            ]
            Path(given.out).write_text("\n".join(lines) + "\n")
            shutil.copy(soak.host.log, f"{given.out}.log")
        shutil.rmtree(home, ignore_errors=True)
    print("verdict: " + ("; ".join(wrong) or "flat; service returned; nothing left over"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
