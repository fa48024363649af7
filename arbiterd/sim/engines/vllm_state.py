"""The stand-in vLLM's API server: what runs, what its core answers, whether requests go on."""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from arbiterd.sim.engines.common import Faults, Link
from arbiterd.sim.engines.vllm_http import Left

VERSION = "0.32.0"
WATCHDOG_S = 1.0  # the real one looks every 5 s
ADMISSION_S = 0.02  # from the first look at the bound to being counted: streams meet it in between
_STATES = ("awake", "weights_offloaded", "discard_all")
_LOOK_S = 0.03  # how often a hanging request looks whether its client is still there
PAUSED = "Generation is paused. Please retry after it resumes."


class Pausing:
    """Whether requests go on: ``level`` None while awake, else the level of its sleep. ``hangs``:
    requests wait while paused, too.
    """

    def __init__(self, *, hangs: bool) -> None:
        self.changed = threading.Condition()
        self.paused = False
        self.level: int | None = None
        self.active = self.hanging = 0
        self._hangs = hangs

    def _open(self) -> bool:
        """Whether a request is not held here: it may run, or is to be refused."""
        return (not self.paused and self.level is None) or (self.paused and not self._hangs)

    def enter(self, left: Callable[[], bool]) -> bool:
        """A request begins: False when it is to be refused.

        Raises:
            Left: its client has gone meanwhile.
        """
        with self.changed:
            self.hanging += 1
            try:
                while not self._open():
                    self.changed.wait(_LOOK_S)
                    if left():
                        raise Left
            finally:
                self.hanging -= 1
            self.active += not self.paused
            return not self.paused

    def leave(self) -> None:
        """A request has ended."""
        with self.changed:
            self.active -= 1
            self.changed.notify_all()

    def tell(self, *, paused: bool | None = None, awake: bool = False, level: int = 0) -> None:
        """Pause or resume, fall asleep or wake."""
        with self.changed:
            if paused is not None:
                self.paused = paused
            if awake:
                self.level = None
            elif level:
                self.level = level
            self.changed.notify_all()

    def drained(self) -> None:
        """Wait until no request runs."""
        with self.changed:
            self.changed.wait_for(lambda: not self.active)

    def rows(self) -> list[tuple[str, str, str, float]]:
        """vllm:engine_sleep_state, one row per state: name, type, further labels, value."""
        now = _STATES[self.level or 0]
        name = "engine_sleep_state"
        return [(name, "gauge", f',sleep_state="{one}"', one == now) for one in _STATES]


class State:
    """The API server's side of the engine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.models: list[str] = options.served_model_name or [options.model]
        self.loras: dict[str, tuple[str, str]] = {n: (p, base) for n, p, base in options.loras}
        self.faults = Faults()
        self.version = str(self.faults.get("version", VERSION))
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.outputs: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.running: set[int] = set()
        self.prompt_tokens = self.generation_tokens = self.preemptions = 0
        self.finished = dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
        self.rejected = 0
        self.dead = False
        self.draining = False  # SIGTERM has come: no new requests
        self.cut = False  # the core was ended: clients get nothing any more
        self.pausing = Pausing(hangs=_before(self.version, 0, 33))
        self.in_flight = 0
        self.answering = 0
        self.ready = threading.Event()
        self.failed = False
        self.core, self.link = self._spawn()
        threading.Thread(target=self._listen, daemon=True).start()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Link]:
        """No parent-death signal, no shared fate: an orphaned core keeps its memory (vllm #55510)."""
        ours, theirs = socket.socketpair()
        wanted = (
            "model",
            "gpu_memory_utilization",
            "max_model_len",
            "max_num_seqs",
            "enforce_eager",
            "enable_sleep_mode",
        )
        options = {name: getattr(self.options, name) for name in wanted}
        core = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "arbiterd.sim.engines.vllm_core",
                str(theirs.fileno()),
                json.dumps(options),
            ],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        return core, Link(ours)

    def _listen(self) -> None:
        for message in self.link:
            if "ready" in message:
                self.ready.set()
            elif "failed" in message:
                self.failed = True
                self.ready.set()
            else:
                self._count(message)
                with self.lock:
                    out = self.outputs.get(message["id"])
                if out is not None:
                    out.put(message)
        self.dead = not self.cut
        self.ready.set()
        if self.dead:
            with self.lock:
                for out in self.outputs.values():
                    out.put({"dead": True})

    def _count(self, message: dict[str, Any]) -> None:
        with self.lock:
            if "started" in message:
                self.running.add(message["id"])
                self.prompt_tokens += message["prompt_tokens"]
            elif "token" in message:
                self.generation_tokens += 1
            elif "done" in message:
                self.finished["length"] += message["id"] in self.running
                self.running.discard(message["id"])

    def ask(self, **message: Any) -> tuple[int, queue.Queue[dict[str, Any]]]:
        """Send to the core; answers come through the queue."""
        number = next(self.numbers)
        out: queue.Queue[dict[str, Any]] = queue.Queue()
        with self.lock:
            self.outputs[number] = out
        self.link.send(id=number, **message)
        if self.dead:
            out.put({"dead": True})
        return number, out

    def end(self, number: int) -> None:
        """Forget a request; the core stops making tokens for it."""
        with self.lock:
            self.outputs.pop(number, None)
            self.running.discard(number)
        self.link.send(op="cancel", id=number)

    def abort(self) -> None:
        """End every request: 200 and finish_reason 'abort' for its client, if it was running."""
        with self.lock:
            for number, out in self.outputs.items():
                out.put({"done": True, "aborted": True, "queued": number not in self.running})

    def full(self, count: int = 1) -> bool:
        """Whether ``count`` more would be over --max-num-queued-reqs, running requests included."""
        limit = self.options.max_num_queued_reqs
        return limit is not None and self.in_flight + count > limit

    def admit(self, count: int) -> bool:
        """Count a request in, as ``count`` sequences; False when it would be one too many."""
        if self.options.max_num_queued_reqs is not None:
            time.sleep(ADMISSION_S)
        with self.lock:
            if self.full(count):
                self.rejected += 1
                return False
            self.in_flight += count
            return True

    def leave(self, count: int) -> None:
        """The request has ended."""
        with self.lock:
            self.in_flight -= count

    def answers(self, change: int) -> None:
        """A client waits for an answer, or does not any more."""
        with self.lock:
            self.answering += change

    def metrics(self) -> str:
        """Prometheus text."""
        with self.lock:
            running = len(self.running)
            waiting = max(0, self.in_flight - running)
        name = f'engine="0",model_name="{self.models[0]}"'
        deferred = self.pausing.hanging
        rows: list[tuple[str, str, str, float]] = [
            ("num_requests_running", "gauge", "", running),
            ("num_requests_waiting", "gauge", "", waiting),
            ("num_requests_waiting_by_reason", "gauge", ',reason="capacity"', waiting - deferred),
            ("num_requests_waiting_by_reason", "gauge", ',reason="deferred"', deferred),
            *self.pausing.rows(),
            ("kv_cache_usage_perc", "gauge", "", min(1.0, running / 16)),
            ("num_preemptions_total", "counter", "", self.preemptions),
            ("prompt_tokens_total", "counter", "", self.prompt_tokens),
            ("generation_tokens_total", "counter", "", self.generation_tokens),
            (
                "admission_rejections_total",
                "counter",
                ',reason="max_num_queued_reqs"',
                self.rejected,
            ),
        ]
        lines = ["# a few of the real one's rows\n", "# TYPE vllm:request_success_total counter\n"]
        lines += [
            f'vllm:request_success_total{{engine="0",finished_reason="{why}",'
            f'model_name="{self.models[0]}"}} {float(count)}\n'
            for why, count in self.finished.items()
        ]
        typed: set[str] = set()
        for row, kind, labels, value in rows:
            if row not in typed:
                lines.append(f"# TYPE vllm:{row} {kind}\n")
                typed.add(row)
            lines.append(f"vllm:{row}{{{name}{labels}}} {float(value)}\n")
        return "".join(lines)


def _before(version: str, *than: int) -> bool:
    return tuple(int(one) for one in version.split(".")[:2] if one.isdigit()) < than
