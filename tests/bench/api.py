"""What readers cost: a scrape, the page's viewers, arbiterctl; and how all grows with GPUs and backends."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from arbiterd.core.decide import decide
from arbiterd.model.settings import Kind, Mode
from arbiterd.report.api import status
from arbiterd.report.metrics import exposition
from arbiterd.report.metrics.counters import Counts
from arbiterd.web.admin import Admin
from arbiterd.web.read import _SLICE_S
from arbiterd.web.replies import as_text
from arbiterd.web.server import WebServer
from arbiterd.web.snapshot import Holder
from tests.core.world import World, backend, settings, share
from tests.support import free_port
from tests.web.site import published

VIEWERS, VIEWED_S = 50, 6.0
GPUS, BACKENDS = (1, 2, 4, 8, 16), (3, 8, 16, 32, 64)  # the others: 16 backends, 4 GPUs
ROUNDS = 20


def crowd(backends: int, gpus: int) -> World:
    """That many generic servers, spread over the cards, all of them ready."""
    many = {
        f"b{n:02}": backend(f"b{n:02}", Kind.GENERIC, port=9000 + n, health="/h")
        for n in range(backends)
    }
    part = 0.8 / math.ceil(backends / gpus)
    shares = {name: share(name, part, gpu=n % gpus) for n, name in enumerate(many)}
    return World(settings({"A": Mode("A", shares, many)}), gpus=gpus).up()


def cpu_ms(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median of this thread's CPU time: other work on the machine is not in it."""
    took = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        took.append((time.thread_time() - began) * 1000)
    return statistics.median(took)


def works(world: World) -> Mapping[str, Callable[[], object]]:
    """A tick's decision and the three renderings of it."""
    seen, observed, state = published(world), world.observation(), world.state
    return {
        "decide()": lambda: decide(observed, state, world.settings),
        "/v1/status": lambda: as_text(status.status(seen, "host")),
        "/metrics": lambda: exposition.render(seen, Counts()),
    }


def longest_slice_ms(world: World) -> float:
    """The longest time for which a scrape keeps Python's lock from the loop's thread; median of rounds."""
    seen, longest = published(world), []
    for _ in range(ROUNDS):
        began, most = time.thread_time(), 0.0
        for family in exposition.families(seen, Counts()):
            exposition.text(family)
            if (took := time.thread_time() - began) > _SLICE_S:
                most, began = max(most, took), time.thread_time()
        longest.append(most * 1000)
    return statistics.median(longest)


def viewers() -> float:
    """Per cent of a core in the web thread while VIEWERS pages look on and the loop publishes."""
    world, holder, port = World(settings()).up(), Holder(), free_port()
    admin = Admin(submit=lambda _request: None, reload=_no_reload)
    holder.put(published(world))
    with tempfile.TemporaryDirectory() as folder:
        server = WebServer(
            holder, host="127.0.0.1", port=port, socket_path=Path(folder) / "s", admin=admin
        )
        server.start()
        thread = server._thread
        assert thread is not None
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)

        async def view() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
            writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            while await reader.read(2**16):
                pass

        async def look() -> float:
            all_of = [asyncio.create_task(view()) for _ in range(VIEWERS)]
            await asyncio.sleep(2)
            before, began = time.clock_gettime(clock), time.monotonic()
            while (took := time.monotonic() - began) < VIEWED_S:
                holder.put(published(world))
                await asyncio.sleep(0.25)
            used = time.clock_gettime(clock) - before
            for one in all_of:
                one.cancel()
            return 100 * used / took

        try:
            return asyncio.run(look())
        finally:
            server.close()


def _no_reload() -> NoReturn:
    """No reload is part of what is measured here."""
    msg = "the benchmark asked for a reload"
    raise AssertionError(msg)


def ctl_s(*argv: str, **environ: str) -> float:
    """CPU seconds of one arbiterctl, median of nine."""
    took = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", "from arbiterd.cli import main; main()", *argv],
            env={**os.environ, **environ},
            capture_output=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(took)


def completion_s() -> float:
    """CPU seconds of completing ``arbiterctl st`` in bash."""
    line = {"COMP_WORDS": "arbiterctl st", "COMP_CWORD": "1"}
    return ctl_s(_ARBITERCTL_COMPLETE="complete_bash", **line)


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """Of log value over log size, by least squares: 1 is linear, 2 quadratic."""
    xs, ys = [math.log(one) for one in sizes], [math.log(one) for one in values]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    over = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return over / sum((a - x) ** 2 for a in xs)


def scaling() -> None:
    """A table for GPUs and one for backends, in ms of CPU time."""
    for title, sizes, world_of in (
        ("GPUs (16 backends)", GPUS, partial(crowd, 16)),
        ("backends (4 GPUs)", BACKENDS, partial(crowd, gpus=4)),
    ):
        print(f"\n| ms, by {title} | {' | '.join(map(str, sizes))} | growth: exponent |")
        print("| --- |" + " --- |" * (len(sizes) + 1))
        worlds = [works(world_of(size)) for size in sizes]
        for what in worlds[0]:
            values = [cpu_ms(one[what]) for one in worlds]
            shown = " | ".join(f"{value:.2f}" for value in values)
            print(f"| {what} | {shown} | {slope(sizes, values):.2f} |", flush=True)
