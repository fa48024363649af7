"""``make bench``: what the daemon costs. Prints the table of docs/benchmarks.md.

Ratios and percentiles of one run on one machine; other work on it makes them worse, never better.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from arbiterd.act.launch.base import Launcher
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.systemd import SystemdLauncher
from arbiterd.core.decide import decide
from arbiterd.model.launch import LaunchSpec, UnitState
from arbiterd.model.settings import Kind, Mode
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, build
from tests.core.world import World, backend, settings, share
from tests.support import wait_until
from tests.support.host import SHARED, Host

STEADY_S = 30.0
EXITS = 200
DECISIONS = 2000
SAMPLES = 500


def row(what: str, value: str, budget: str = "") -> None:
    """One line of the table."""
    print(f"| {what} | {value} | {budget} |", flush=True)


def spread(values: Sequence[float], unit: str) -> str:
    """Median, 99th percentile, maximum."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {statistics.median(ordered):.2f} {unit}, p99 {p99:.2f} {unit}, max {ordered[-1]:.2f} {unit}"


def footprint(lib: Path) -> None:
    """PSS and CPU of a steady daemon with three engines at the default poll of 250 ms."""
    with tempfile.TemporaryDirectory(prefix="arbiter-bench-") as folder:
        host = Host(Path(folder), lib)
        host.write(SHARED)
        text = host.config.read_text().replace('poll = "100ms"', 'poll = "250ms"')
        host.config.write_text(text)
        try:
            began = time.monotonic()
            host.start()
            row(
                "start of the process to its API answering",
                f"{time.monotonic() - began:.2f} s",
                "2 s",
            )
            host.wait_ready()
            assert host.process is not None
            daemon = psutil.Process(host.process.pid)
            worker = next(p for p in daemon.children() if "nvml_worker" in " ".join(p.cmdline()))
            time.sleep(10)  # past the start: probes, the first canaries, the warm model
            before = [sum(p.cpu_times()[:2]) for p in (daemon, worker)]
            tick = host.status()["loop"]["tick"]
            ticks, began = [], time.monotonic()
            while time.monotonic() - began < STEADY_S:
                time.sleep(5)
                ticks.append(host.status()["loop"]["last_tick_ms"])
            took = time.monotonic() - began
            after = [sum(p.cpu_times()[:2]) for p in (daemon, worker)]
            count = host.status()["loop"]["tick"] - tick
            pss = [p.memory_full_info().pss / 2**20 for p in (daemon, worker)]
            row("memory, daemon (PSS)", f"{pss[0]:.1f} MiB", "")
            row("memory, NVML worker (PSS)", f"{pss[1]:.1f} MiB", "")
            row("memory, both", f"{sum(pss):.1f} MiB", "96 MiB")
            cpu = [100 * (b - a) / took for a, b in zip(before, after, strict=True)]
            row(
                "CPU, daemon (three engines, a status request each 5 s)",
                f"{cpu[0]:.2f} % of a core",
                "",
            )
            row("CPU, NVML worker", f"{cpu[1]:.2f} % of a core", "")
            row("CPU, both", f"{sum(cpu):.2f} % of a core", "1 %")
            row("ticks a second", f"{count / took:.2f}", "4")
            row("a tick, all of it", spread(ticks, "ms"), "")
        finally:
            host.close()


def decisions() -> None:
    """decide() alone: three engines on one card, and 32 backends on eight."""
    many = {
        f"b{n:02}": backend(f"b{n:02}", Kind.GENERIC, port=9000 + n, health="/h") for n in range(32)
    }
    shares = {name: share(name, 0.2, gpu=n % 8) for n, name in enumerate(many)}
    crowd = World(settings({"A": Mode("A", shares, many)}), gpus=8)
    for name, world in (("three engines", World(settings())), ("8 GPUs, 32 backends", crowd)):
        world.up()
        seen, state = world.observation(), world.state
        took = []
        for _ in range(DECISIONS):
            began = time.perf_counter()
            decide(seen, state, world.settings)
            took.append((time.perf_counter() - began) * 1000)
        row(f"decide(), {name}", spread(took, "ms"), "1 ms")


def exits(kind: str = "direct") -> None:
    """From SIGKILL of a main process to EXITED being observed: pidfd, or a D-Bus signal."""
    with tempfile.TemporaryDirectory(prefix="arbiter-bench-") as folder:
        woken = threading.Event()
        make = DirectLauncher if kind == "direct" else SystemdLauncher
        launcher: Launcher = make(Path(folder), woken.set)
        launcher.adopt()
        took = []
        for _ in range(EXITS):
            launcher.start(LaunchSpec("x", ("/bin/sleep", "600"), {}, "i", user="root"))
            main = launcher.observe(time.monotonic())["x"].main
            assert main is not None
            began = time.perf_counter()
            os.kill(main.pid, 9)
            while launcher.observe(time.monotonic())["x"].state is not UnitState.EXITED:
                woken.wait(1)
                woken.clear()
            took.append((time.perf_counter() - began) * 1000)
            launcher.stop("x", 0.0)
        launcher.close()
        row(f"SIGKILL to exit observed, {kind}, {EXITS} times", spread(took, "ms"), "p99 250 ms")


def exits_under_systemd() -> None:
    """The same in a real systemd, booted for it."""
    if os.geteuid() != 0:
        row("SIGKILL to exit observed, systemd", "not measured: needs root", "p99 250 ms")
        return
    root = Path(__file__).resolve().parents[2]
    script = root / "tests" / "system" / "systemd-box"
    inner = f"cd {root} && {sys.executable} -m tests.bench exits-systemd"
    box = [
        str(script),
        "-n",
        f"bench-{os.getpid()}",
        "run",
        "--bind-ro",
        str(root),
        "--",
        "sh",
        "-c",
        inner,
    ]
    done = subprocess.run(box, capture_output=True, text=True, check=False)
    print(done.stdout.strip() or done.stderr.strip(), flush=True)


def samples(lib: Path) -> None:
    """A round trip to the NVML worker, memory and processes of one card."""
    from arbiterd.sim.gpu import SimGpu

    with tempfile.TemporaryDirectory(prefix="arbiter-bench-") as folder:
        gpu = SimGpu.create(Path(folder) / "gpu", lib, ("rtx4090-24g",))
        os.environ |= {STATE_ENV: f"{folder}/gpu", LIB_ENV: str(lib), "LD_LIBRARY_PATH": str(lib)}
        source = NvmlSource()
        source.start()
        wait_until(lambda: source.latest(time.monotonic()).devices, 10)
        took = []
        for _ in range(SAMPLES):
            last = source._sample_at
            began = time.perf_counter()
            source.request(time.monotonic(), processes=True)
            while source._sample_at == last:
                time.sleep(0.0001)
            took.append((time.perf_counter() - began) * 1000)
        source.close()
        gpu.close()
        row("an NVML sample through the worker (simulated card)", spread(took, "ms"), "")


def main() -> int:
    """All of them."""
    if sys.argv[1:] == ["exits-systemd"]:
        exits("systemd")
        return 0
    lib = build()
    cores = os.cpu_count()
    print(
        f"Python {platform.python_version()}, {cores} cores, load {os.getloadavg()[0]:.1f} at the start\n"
    )
    print("| what | measured | budget |\n| --- | --- | --- |")
    decisions()
    exits()
    exits_under_systemd()
    samples(lib)
    footprint(lib)
    return 0


if __name__ == "__main__":
    sys.exit(main())
