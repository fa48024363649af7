"""``make bench-switch``: A → B → A on a simulated host, beside what the engines themselves take.

The engine's own times are measured without the arbiter: its launch line is run by hand, from exec to
the first 200 of its health URL, and from SIGTERM to the end of its last process.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import requests

from arbiterd.sim.gpu import build
from tests.integration.test_switch import write
from tests.support import wait_until
from tests.support.host import Host


def alone(host: Host, argv: list[str], env: Mapping[str, str], url: str) -> tuple[float, float]:
    """(start, stop) in seconds of an engine that nobody looks after."""
    began = time.monotonic()
    process = subprocess.Popen(
        argv,
        env={**host.environ(), **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: _ok(url), 60, "its health")
    up = time.monotonic() - began
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    time.sleep(1.0)  # at rest, as an engine that is switched
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    psutil.wait_procs(family[1:], 30)
    return up, time.monotonic() - began


def _ok(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def measure(host: Host, delay_s: float, rounds: int, row: dict[str, Any]) -> None:
    """A → B → A so often, then the engine alone; vLLM's start is longer by ``delay_s``."""
    for name in ("vllm", "vllm-b"):
        host.fault(name, start_delay_s=delay_s)
    host.start()
    host.wait_ready()
    totals: list[float] = []
    for _ in range(rounds):
        for mode in ("B", "A"):
            done = host.ctl("mode", mode, "--json")
            assert done.returncode == 0, done.stderr
            totals.append(json.loads(done.stdout)["took_s"])
    assert host.stop() == 0
    url = f"http://127.0.0.1:{host.ports['vllm'] + 10000}/health"
    env = {**row["env"], "GPU_SIM_FAULTS": f"{host.home}/faults/vllm-b.json"}
    own = [alone(host, row["argv"], env, url) for _ in range(rounds)]
    starts, stops = [one[0] for one in own], [one[1] for one in own]
    both = statistics.median(starts) + statistics.median(stops)
    ratio = statistics.median(totals) / both
    cells = (_spread(starts), _spread(stops), _spread(totals), f"{ratio:.2f}")
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Prints the table of docs/benchmarks.md, section Switching."""
    lib = build()
    home = Path(tempfile.mkdtemp(prefix="gpua-bench-", dir="/tmp"))
    host = Host(home, lib, ("rtx4090-24g", "rtx4090-24g"), gateway=True)
    print("| own start | own stop | a switch | ratio of the medians |\n| --- | --- | --- | --- |")
    try:
        write(host, only=("tensorflow", "vllm", "ollama"))
        planned = json.loads(host.ctl("plan", "--mode", "B", "--json").stdout)
        row = next(one for one in planned["backends"] if one["name"] == "vllm")
        for delay_s, rounds in ((0.0, 5), (10.0, 1)):
            measure(host, delay_s, rounds, row)
    finally:
        host.close()
        shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
