"""``make bench-overflow``: from the moment a card runs short to the brake at the door, and to its bytes.

Five scenarios, each with the real daemon (poll 250 ms, every other setting as it comes), HAProxy and
stand-ins on eight simulated cards, used in turn so that cool-downs of one card never wait for another.
A witness, a process of its own (overflow_witness.py), notes by CLOCK_MONOTONIC when the card's free
memory crosses the critical line, when HAProxy's map says that the door is shut, and when free memory is
above the line again. Other work on the machine makes the figures worse, never better.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arbiterd.core.limits import RESTART_AGAIN_S
from arbiterd.gateway.paths import paths
from arbiterd.linux import procfs
from arbiterd.quantities import GIB, MIB
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, build
from tests.support import free_port
from tests.support.host import Host
from tests.support.overflow import Stranger

CARDS = 8
ROUNDS = (
    4  # of all cards: 32 trials; three restarts and a stop of one backend stay within every bound
)
AGAIN_S = RESTART_AGAIN_S + 1.0  # sooner, the ladder would wait for the cool-down of its restart
LINE = 256 * MIB  # the critical line of a 24 GiB card (core/memory/pressure.py)
Found = dict[str, float]


class Cards:
    """Eight cards, one engine each, and the witness."""

    def __init__(self, folder: Path, lib: Path, kind: str, share: str) -> None:
        self.kind = kind
        self.host = Host(folder, lib, ("rtx4090-24g",) * CARDS, gateway=True)
        self.names = [f"{kind}{n}" for n in range(CARDS)]
        modes = "[modes.A]\n" + "\n".join(
            f'{name} = {{ gpu = {n}, memory = "{share}" }}' for n, name in enumerate(self.names)
        )
        backends = "\n".join(self._backend(n) for n in range(CARDS))
        self.host.write(modes, backends=backends, only=())
        text = self.host.config.read_text().replace('poll = "100ms"', 'poll = "250ms"')
        self.host.config.write_text(text)
        own = paths(str(folder / "run"), systemd=False)
        argv = (str(folder / "gpu"), str(lib), str(own.runtime), str(own.live))
        self.witness = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.overflow_witness", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _backend(self, number: int) -> str:
        host, name = self.host, self.names[number]
        module = f'"{sys.executable}", "-m", "arbiterd.sim.engines.{self.kind}"'
        match self.kind:
            case "tensorflow":
                own = (
                    f'kind = "tensorflow-serving"\ncommand = [{module}]\n'
                    f'models = {{ resnet50 = "{host.home}/models/resnet50" }}\n'
                    f"grpc_port = {free_port()}\n"
                )
            case "vllm":
                own = f'kind = "vllm"\ncommand = [{module}, "serve", "M/{number}"]\nmax_model_len = 8192\n'
            case _:
                own = (
                    f'kind = "ollama"\ncommand = [{module}, "serve"]\nmodels = ["qwen2.5:3b"]\n'
                    'version = "0.33.0"\n'
                )
        port = f'port = {free_port()}\nrestart_delay = "200ms"\ndrain_timeout = "2s"\n'
        return f"[backends.{name}]\n{own}{port}{host.env_line(name)}\n"

    def calm(self, number: int) -> None:
        """The engine of this card takes work, and its memory is where it was."""
        name, host = self.names[number], self.host
        host.wait(lambda: host.backend(name)["accepting"], f"{name} to accept", 60)
        if self.kind != "ollama":
            return
        loaded = int(host.backend(name)["used_bytes"] or 0) > GIB
        host.wait(lambda: int(host.backend(name)["used_bytes"] or 0) > GIB, "its model", 60)
        if not loaded:
            time.sleep(2)  # until the next probe has heard of it: before, there is nothing to trim

    def watch(self, number: int, line: int, trigger: Callable[[], float | None]) -> Found:
        """One trial. ``trigger`` returns the moment of the crossing when it knows it itself."""
        assert self.witness.stdin is not None
        assert self.witness.stdout is not None
        self.witness.stdin.write(f"{number} {self.names[number]} {line}\n")
        self.witness.stdin.flush()
        assert self.witness.stdout.readline() == "watching\n"
        time.sleep(random.random() * 0.25)  # any phase of the poll
        at = trigger()
        found: Found = json.loads(self.witness.stdout.readline())
        return found if at is None else {**found, "crossed": at}

    def close(self) -> None:
        """End all of it."""
        assert self.witness.stdin is not None
        self.witness.stdin.close()
        self.witness.wait(40)
        self.host.close()


# -- scenarios --------------------------------------------------------------------------------------
def _fault(cards: Cards, number: int, **values: float) -> Found:
    name = cards.names[number]
    found = cards.watch(number, LINE, lambda: cards.host.fault(name, **values))
    cards.host.fault(name)
    return found


def ollama_ramp(cards: Cards, number: int) -> Found:
    """A runner grows by 4 GiB/s over its plan and its cap."""
    return _fault(cards, number, grow_mib_per_s=4096)


def tensorflow_leak(cards: Cards, number: int) -> Found:
    """1 GiB/s beyond the pool."""
    return _fault(cards, number, leak_mib_per_s=1024)


def runaway(cards: Cards, number: int) -> Found:
    """8 GiB/s: the room beside its cap is gone within two polls."""
    return _fault(cards, number, leak_mib_per_s=8 * 1024)


def orphan(cards: Cards, number: int) -> Found:
    """The API server dies, EngineCore stays with all its memory."""
    name, host = cards.names[number], cards.host
    pids: list[int] = host.backend(name)["pids"]
    server = next(pid for pid in pids if "vllm serve" in procfs.command(pid))
    whole = host.gpu.memory(number)

    def kill() -> float:
        at = time.monotonic()
        os.kill(server, signal.SIGKILL)
        return at

    return cards.watch(number, whole[2] + whole[3] - LINE, kill)


def grab(cards: Cards, number: int) -> Found:
    """A stranger takes all but 100 MiB at one stroke."""
    one = Stranger(cards.host.home, cards.host.home / "gpu", cards.host.lib)
    try:
        size = cards.host.gpu.memory(number)[3] - 100 * MIB
        found = cards.watch(number, LINE, lambda: one.grab(size, number))
        assert one.unharmed()
        return found
    finally:
        one.close()


SCENARIOS: tuple[tuple[str, str, str, Callable[[Cards, int], Found]], ...] = (
    ("Ollama's runner ramps, 4 GiB/s", "ollama", "60%", ollama_ramp),
    ("TensorFlow leaks, 1 GiB/s", "tensorflow", "85%", tensorflow_leak),
    ("a notebook grabs all but 100 MiB", "ollama", "60%", grab),
    ("vLLM's API server killed, EngineCore stays", "vllm", "85%", orphan),
    ("vLLM runs away, 8 GiB/s", "vllm", "85%", runaway),
)


# -- telling ----------------------------------------------------------------------------------------
def spread(values: Sequence[float]) -> str:
    """Median, 99th percentile, maximum, in ms."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"{statistics.median(ordered):.0f} / {p99:.0f} / {ordered[-1]:.0f}"


def tell(what: str, trials: Sequence[Found]) -> None:
    """One line of the table."""
    crossed = [one for one in trials if "crossed" in one]
    brake = [1000 * (one["braked"] - one["crossed"]) for one in crossed if "braked" in one]
    back = [1000 * (one["back"] - one["crossed"]) for one in crossed if "back" in one]
    given = [
        1000 * (one["back"] - one["braked"]) for one in trials if {"back", "braked"} <= one.keys()
    ]
    missed = sum(1 for one in trials if "braked" not in one or "back" not in one)
    lowest = min(one["lowest_mib"] for one in trials)
    row: tuple[Any, ...] = (what, len(trials), len(crossed), spread(brake), spread(back))
    row = (*row, spread(given))
    print("|", " | ".join(str(one) for one in (*row, f"{lowest:.0f}", missed)), "|", flush=True)


def measure(lib: Path, only: Sequence[str]) -> None:
    """Every scenario, or those named by their function."""
    for what, kind, share, trial in SCENARIOS:
        if only and trial.__name__ not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="gpua-of-", dir="/tmp") as folder:
            cards = Cards(Path(folder), lib, kind, share)
            try:
                cards.host.start()
                cards.host.wait(
                    lambda c=cards: all(b["accepting"] for b in c.host.status()["backends"]),  # type: ignore[misc]
                    "all to accept",
                    120,
                )
                time.sleep(
                    6
                )  # a full window of samples, as any daemon has that has run for a while
                trials = []
                done = [0.0] * CARDS
                for _ in range(ROUNDS):
                    for number in range(CARDS):
                        cards.calm(number)
                        time.sleep(max(0.0, done[number] + AGAIN_S - time.monotonic()))
                        trials.append(trial(cards, number))
                        done[number] = time.monotonic()
                tell(what, trials)
                if os.environ.get("OVERFLOW_TRIALS"):
                    for one in trials:
                        print(one, file=sys.stderr)
            finally:
                cards.close()


def main() -> int:
    """All of them, with the machine's noise before and after."""
    lib = build()
    os.environ |= {STATE_ENV: "", LIB_ENV: str(lib)}
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, poll 250 ms")
    print(f"load average before: {os.getloadavg()[0]:.1f}\n", flush=True)
    print("| scenario | trials | line crossed | crossing to brake, p50 / p99 / max ms ", end="")
    print("| crossing to bytes back | brake to bytes back | least free, MiB | incomplete |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    measure(lib, sys.argv[1:])
    print(f"\nload average after: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
