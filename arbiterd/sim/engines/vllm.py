"""A stand-in for ``vllm serve MODEL``: the API server; the memory is its EngineCore's.

Port bound at once, listening only when ready. SIGTERM: see ``_end``. When the core dies the server
ends with exit code 0, as the real one does (vllm #48966). Answers are those of 0.32 (vllm_api.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from arbiterd.sim.engines.common import Faults, Link, Server, say
from arbiterd.sim.engines.vllm_options import options as read_options
from arbiterd.sim.engines.vllm_sleep import Pausing

VERSION = "0.32.0"
WATCHDOG_S = 1.0  # the real one looks every 5 s
ADMISSION_S = 0.02  # from the first look at the bound to being counted: streams meet it in between
ABORT_S = 1.0  # what clients of aborted requests get to read their end; the real one ends in 0.7 s
LAST_CLIENT_S = 0.2  # from the last client's leaving to the end


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


def main() -> int:
    """Serve."""
    from arbiterd.sim.engines.vllm_api import Api  # noqa: PLC0415 - it needs State for its types

    try:
        options = read_options(sys.argv[1:])
    except (ValueError, OSError) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    faults = Faults()
    faults.at_start()
    try:
        server = Server((options.host or "0.0.0.0", options.port), Api, listen=False)  # nosec B104 # as vLLM
    except OSError as error:
        say(f"OSError: [Errno {error.errno}] Address already in use")
        return 1
    state = Api.state = State(options)
    Api.keys = tuple(options.api_key or [os.environ.get("VLLM_API_KEY", "")])
    Api.keys = tuple(key for key in Api.keys if key)
    signal.signal(signal.SIGTERM, lambda *_: _stop(state))
    signal.signal(signal.SIGINT, lambda *_: _stop(state))
    state.ready.wait()
    if state.failed or state.dead:
        state.core.wait()
        say(
            "RuntimeError: Engine core initialization failed. See root cause above. "
            "Failed core proc(s): {'EngineCore': 1}"
        )
        return 1
    server.server_activate()
    print("INFO:     Application startup complete.", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not state.draining:
        if state.dead or state.core.poll() is not None:
            say("AsyncLLM output_handler failed: EngineDeadError: EngineCore encountered an issue.")
            state.dead = True
            time.sleep(WATCHDOG_S)
            return 0
        time.sleep(0.05)
    return _end(state, server)


def _stop(state: State) -> None:
    if not state.ready.is_set():
        _end_core(state)
        os._exit(0)
    state.draining = True


def _end(state: State, server: Server) -> int:
    """After SIGTERM. --shutdown-timeout 0: what runs is aborted. Else it may end until then; new
    requests get 500, /health says 200. Then the core is ended, the port closed, and the process stays
    until the last client that waits for an answer has left. The fault ``lingers``: idle it stays for
    the whole time as well, as the real one on the CPU does.
    """
    limit = float(state.options.shutdown_timeout)
    deadline = time.monotonic() + (limit or ABORT_S)
    if not limit:
        state.abort()
    while (state.outputs or _lingers(state, limit)) and time.monotonic() < deadline:
        time.sleep(0.02)
    state.cut = True
    _end_core(state)
    server.shutdown()
    server.server_close()
    if state.answering:
        while state.answering:
            time.sleep(0.02)
        time.sleep(LAST_CLIENT_S)
    return 0


def _lingers(state: State, limit: float) -> bool:
    return bool(limit and state.faults.get("lingers"))


def _end_core(state: State) -> None:
    with suppress(ProcessLookupError):
        state.core.kill()
        state.core.wait()


if __name__ == "__main__":
    sys.exit(main())
