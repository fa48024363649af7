"""``make bench``: what it costs, everything on that is on by default. Prints the tables of docs/benchmarks.md.

Ratios and percentiles of one run on one machine; other work on it makes them worse, never better.
"""

from __future__ import annotations

import os
import platform
import shutil
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
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, build
from tests.bench import api
from tests.core.world import World, settings
from tests.support import wait_until
from tests.support.host import SHARED, Host

STEADY_S = 30.0
EXITS = 100
DECISIONS = 500
SAMPLES = 200


def row(what: str, value: str, goal: str = "", ratio: str = "") -> None:
    """One line of the table."""
    print(f"| {what} | {goal} | {value} | {ratio} |", flush=True)


def goal(what: str, value: float, most: float, unit: str, more: str = "") -> None:
    """One line with a figure that has an upper bound: under 1.00 the goal is met."""
    row(what, f"{value:.2f} {unit}{more}", f"<= {most:g} {unit}", f"{value / most:.2f}")


def spread(values: Sequence[float], unit: str) -> str:
    """Median, 99th percentile, maximum."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {statistics.median(ordered):.2f} {unit}, p99 {p99:.2f} {unit}, max {ordered[-1]:.2f} {unit}"


def footprint(lib: Path) -> None:
    """A steady daemon with three engines: every part that is on by default, all settings as they come."""
    with tempfile.TemporaryDirectory(prefix="gpua-", dir="/tmp") as folder:
        host = Host(Path(folder), lib, gateway=True)
        host.write(SHARED)
        host.config.write_text(host.config.read_text().replace('poll = "100ms"\n', ""))
        try:
            began = time.monotonic()
            host.start()
            goal("start of the daemon to its API answering", time.monotonic() - began, 2.0, "s")
            host.wait_ready()
            assert host.process is not None
            daemon = psutil.Process(host.process.pid)
            worker = next(p for p in daemon.children() if "nvml_worker" in " ".join(p.cmdline()))
            both = (daemon, worker)
            time.sleep(10)  # past the start: probes, the first canaries, the warm model
            before = [sum(p.cpu_times()[:2]) for p in both]
            tick = host.status()["loop"]["tick"]
            ticks, began = [], time.monotonic()
            while time.monotonic() - began < STEADY_S:
                time.sleep(5)
                ticks.append(host.status()["loop"]["last_tick_ms"])
            took = time.monotonic() - began
            after = [sum(p.cpu_times()[:2]) for p in both]
            count = host.status()["loop"]["tick"] - tick
            pss = [p.memory_full_info().pss / 2**20 for p in both]
            doors = [psutil.Process(pid).memory_full_info().pss / 2**20 for pid in host.services()]
            more = f" ({pss[0]:.1f} + {pss[1]:.1f})"
            goal("memory, daemon and NVML worker (PSS)", sum(pss), 52, "MiB", more)
            goal("memory, with HAProxy and load gate (PSS)", sum((*pss, *doors)), 85, "MiB")
            cpu = [100 * (b - a) / took for a, b in zip(before, after, strict=True)]
            more = f" ({cpu[0]:.2f} + {cpu[1]:.2f})"
            goal(
                "CPU, daemon and worker, calm, launcher direct", sum(cpu), 0.9, "% of a core", more
            )
            row("ticks a second; a tick, all of it", f"{count / took:.2f}; {spread(ticks, 'ms')}")
        finally:
            host.close()


def readers() -> None:
    """arbiterctl, a scrape of a large host, the page."""
    goal("arbiterctl status", api.ctl_s("--socket", "/nowhere", "status"), 0.15, "s of CPU")
    goal("completion of a command in bash", api.completion_s(), 0.15, "s of CPU")
    large = api.crowd(64, 16)
    whole = api.cpu_ms(api.works(large)["/metrics"])
    goal(
        "/metrics, 64 backends on 16 GPUs: longest hold of Python's lock",
        api.longest_slice_ms(large), 2.0, "ms", f" (of {whole:.1f}, once a tick)",
    )  # fmt: skip
    goal(f"{api.VIEWERS} viewers of the page", api.viewers(), 1.0, "% of a core")


def decisions() -> None:
    """decide() alone: three engines on one card, and 32 backends on eight."""
    crowd = api.crowd(32, 8)
    for name, world in (("three engines", World(settings())), ("8 GPUs, 32 backends", crowd)):
        world.up()
        seen, state = world.observation(), world.state
        took = []
        for _ in range(DECISIONS):
            began = time.thread_time()
            decide(seen, state, world.settings)
            took.append((time.thread_time() - began) * 1000)
        goal(
            f"decide(), {name}, p50", statistics.median(took), 1.0, "ms", f" ({spread(took, 'ms')})"
        )


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
    print("| figure | goal | today | today / goal |\n| --- | --- | --- | --- |")
    decisions()
    exits()
    exits_under_systemd()
    samples(lib)
    readers()
    footprint(lib)
    api.scaling()
    doors()
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")
    return 0


def doors() -> None:
    """The doors beside nginx: the steps of ``make bench-gateway`` that fit in a minute."""
    if not all(map(shutil.which, ("nginx", "wrk", "haproxy"))):
        print("\nThe doors were not measured: apt-get install haproxy nginx-light wrk")
        return
    print(flush=True)
    subprocess.run([sys.executable, "-m", "tests.bench.gateway", "json", "chat"], check=False)


if __name__ == "__main__":
    sys.exit(main())
