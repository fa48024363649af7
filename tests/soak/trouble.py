"""Random faults on a simulated host, from a seed, each undone after a while.

What kills the daemon itself is not among them: a leak shows only in a process that lives on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from arbiterd.errors import ArbiterError
from arbiterd.quantities import GIB
from tests.support.host import NAMES, Host

PAUSE_S = (6.0, 18.0)  # between the end of a fault and the next one
NVML_ERRORS = (
    2,
    3,
    9,
    10,
    15,
    18,
    999,
)  # invalid, unsupported, driver, timeout, lost, version, unknown


class Trouble:
    """A thread. ``counts``: how often each fault was made."""

    def __init__(self, host: Host, seed: int) -> None:
        self.host, self.random = host, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._good = host.config.read_text()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trouble", daemon=True)
        self.faults: tuple[tuple[int, str, Callable[[], None]], ...] = (
            (6, "engine killed", self._kill),
            (2, "engine stopped (SIGSTOP)", self._freeze),
            (3, "engine hung", lambda: self._engine(20, hang=True)),
            (3, "engine leaks", lambda: self._engine(10, leak_mib_per_s=200)),
            (2, "engine out of memory", lambda: self._engine(5, oom_next_request=True)),
            (2, "engine's health lies (500)", lambda: self._engine(10, health_status=500)),
            (3, "NVML error", self._nvml_error),
            (2, "NVML hangs", self._nvml_hang),
            (2, "implausible NVML reading", self._misread),
            (1, "GPU lost and back", self._lose),
            (2, "XID", self._xid),
            (4, "unmanaged process takes memory", self._stranger),
            (3, "configuration changed", self._change),
            (3, "configuration broken and mended", self._break),
            (2, "mode switched and back", self._switch),
            (2, "doors changed", self._doors),
            (4, "operator's commands", self._operator),
            (1, "load gate killed", lambda: self._service("arbiterd.loadgate")),
            (1, "NVML worker killed", self._worker),
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the present fault, undo it, and begin no other."""
        self._end.set()
        self._thread.join()
        self._calm()

    def _run(self) -> None:
        for name, fault in self._order():
            if self._end.wait(self.random.uniform(*PAUSE_S)):
                return
            self.counts[name] += 1
            try:
                fault()
            except (
                ArbiterError,
                OSError,
                ValueError,
                KeyError,
                subprocess.SubprocessError,
            ) as error:
                self.errors.append(f"{name}: {type(error).__name__}: {error}")
            finally:
                self._calm()

    def _order(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Each fault once, so that what is made once for good (the threads of the second card, with the
        first switch to mode B) is there before anything is measured; then by weight, for ever.
        """
        for _, name, fault in self.random.sample(self.faults, len(self.faults)):
            yield name, fault
        weights = [weight for weight, _, _ in self.faults]
        while True:
            _, name, fault = self.random.choices(self.faults, weights)[0]
            yield name, fault

    def _calm(self) -> None:
        """Undo what may be left of any fault."""
        host = self.host
        host.gpu.clear_faults()
        for name in NAMES:
            host.fault(name)
        for number in range(len(host.gpu.uuids())):
            if host.gpu.lost(number):
                host.gpu.restore(number)
        self._write(self._good)

    def _hold(self, seconds: float) -> None:
        self._end.wait(self.random.uniform(0.5, 1.0) * seconds)

    def _name(self) -> str:
        return self.random.choice(NAMES)

    def _pids(self, name: str) -> list[int]:
        return [int(pid) for pid in self.host.backend(name).get("pids") or ()]

    def _ctl(self, *argv: str) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.host.ctl(*argv, timeout_s=60)

    # -- engines -------------------------------------------------------------------------------
    def _kill(self) -> None:
        for pid in self._pids(self._name())[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, self.random.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)))

    def _freeze(self) -> None:
        stopped = self._pids(self._name())
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self._hold(20)
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _engine(self, seconds: float, **fault: object) -> None:
        self.host.fault(self._name(), **fault)
        self._hold(seconds)

    # -- the card ------------------------------------------------------------------------------
    def _nvml_error(self) -> None:
        function = self.random.choice(
            ("*", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunning", "nvmlDeviceGetHandle")
        )
        self.host.gpu.fault(function, rc=self.random.choice(NVML_ERRORS), device=-1)
        self._hold(8)

    def _nvml_hang(self) -> None:
        self.host.gpu.fault("nvmlDevice", hang_ms=self.random.choice((800, 4000, 12000)), device=0)
        self._hold(12)

    def _misread(self) -> None:
        total = self.host.gpu.memory(0)[0]
        odd = self.random.choice(((total, 0, 2 * total, 0), (0, 0, 0, 0), (-1, -1, -1, -1)))
        self.host.gpu.misread(0, *odd, count=self.random.randrange(1, 20))

    def _lose(self) -> None:
        self.host.gpu.lose(1, gone=self.random.random() < 0.5)
        self._hold(20)

    def _xid(self) -> None:
        self.host.gpu.xid(0, self.random.choice((13, 31, 43, 45, 63, 94)))

    def _stranger(self) -> None:
        """A process of its own: our pid would not die with its memory."""
        size = self.random.uniform(0.5, 4) * GIB
        argv = [sys.executable, "-m", "arbiterd.sim.gpuctl", "hold", "0", f"{size / GIB:.2f}GiB"]
        with subprocess.Popen(
            argv, env=self.host.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as one:
            try:
                self._hold(25)
            finally:
                one.kill()

    # -- the configuration ---------------------------------------------------------------------
    def _write(self, text: str) -> None:
        if self.host.config.read_text() == text:
            return
        new = self.host.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.host.config)
        self._ctl("reload")

    def _change(self) -> None:
        delay = f'restart_delay = "{self.random.randrange(200, 900)}ms"'
        self._write(self._good.replace('restart_delay = "200ms"', delay))
        self._hold(10)

    def _break(self) -> None:
        cut = self.random.randrange(len(self._good))
        broken = self.random.choice(
            ("", self._good[:cut], self._good[cut:], self._good + "\nx = [", "mode = 3\n")
        )
        self._write(broken)
        self._hold(5)

    def _switch(self) -> None:
        self._write(self._good.replace('mode = "A"', 'mode = "B"', 1))
        self._hold(30)

    def _doors(self) -> None:
        """HAProxy's text changes: a reload, and old workers until their streams have ended."""
        names = f'enabled = true\nhosts = ["h{self.random.randrange(1000)}.example.com"]'
        self._write(self._good.replace("enabled = true", names, 1))
        self._hold(10)

    def _operator(self) -> None:
        name = self._name()
        verb, undo = self.random.choice(
            (("drain", "resume"), ("restart", "resume"), ("sleep", "wake"), ("stop-all", "resume"))
        )
        self._ctl(verb, *([] if verb == "stop-all" else [name]))
        self._hold(8)
        for one in NAMES if verb == "stop-all" else (name,):
            self._ctl(undo, one)

    # -- our own helpers -----------------------------------------------------------------------
    def _service(self, mark: str) -> None:
        for pid in self.host.services():
            with suppress(OSError):
                if mark in _command(pid):
                    os.kill(pid, signal.SIGKILL)

    def _worker(self) -> None:
        assert self.host.process is not None
        for pid in children(self.host.process.pid):
            with suppress(OSError):
                if "nvml_worker" in _command(pid):
                    os.kill(pid, signal.SIGKILL)

    def report(self) -> str:
        """The counts as JSON."""
        return json.dumps(dict(self.counts.most_common()))


def _command(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace")


def children(pid: int) -> list[int]:
    """Direct children of a process, whatever thread started them."""
    out: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
                out += [int(word) for word in file.read().split()]
    return out
