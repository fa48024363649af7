"""The stand-in's EngineCore: holds the memory, makes the tokens, outlives its API server.

Start-up follows vLLM 0.33: the free-memory check against total x utilisation, weights, profiling
with its assertion, then the KV cache takes what is left of the budget (facts/engines.md).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from arbiterd.errors import ArbiterError
from arbiterd.quantities import GIB, MIB
from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Link, gib
from arbiterd.sim.engines.growth import leak, torch_words
from arbiterd.sim.gpu import OutOfMemory

WEIGHTS, ACTIVATION, GRAPHS = 6 * GIB, 900 * MIB, 300 * MIB
KV_PER_TOKEN = 36 * 1024  # Qwen2.5-3B: 36 layers x 2 KV heads x 128 x 2 x 2 bytes
TOKEN_S = 0.02
_PR_SET_NAME = 15


class Core:
    """One engine core."""

    def __init__(self, options: dict[str, Any], link: Link) -> None:
        self.options = options
        self.link = link
        self.faults = Faults()
        self.card = Card()
        self.handles: list[int] = []
        self.weights = int(self.faults.get("weights_bytes", WEIGHTS))
        self.kv = self.workspace = 0
        self.away: set[str] = set()  # what sleeps: "weights", "kv_cache"
        self.unmapped = False  # a sleep failed half-way
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.cancelled: set[int] = set()

    # -- start ---------------------------------------------------------------------------------
    def start(self) -> None:
        """Take memory by vLLM's rules. Raises with vLLM's own texts."""
        self._say(f"Initializing a V1 LLM engine with model={self.options['model']!r}")
        load_s = float(self.faults.get("load_s", 0.6))
        if not self.card.present:
            time.sleep(load_s)
            return
        self.handles.append(self._take(CONTEXT_BYTES))
        free, total = self.card.sizes()
        utilisation = float(self.options["gpu_memory_utilization"])
        requested = math.ceil(total * utilisation)
        if free < requested:
            msg = (
                f"Free memory on device cuda:0 ({gib(free)}/{gib(total)} GiB) on startup is less "
                f"than desired GPU memory utilization ({utilisation}, {gib(requested)} GiB). "
                "Decrease GPU memory utilization or reduce GPU memory used by other processes."
            )
            raise ValueError(msg)
        self.handles.append(self._take(self.weights, load_s))
        self._say(f"Model loading took {gib(self.weights)} GiB memory and {load_s:.6f} seconds")
        self._profile(free, requested)

    def _profile(self, initial_free: int, requested: int) -> None:
        activation = int(self.faults.get("activation_bytes", ACTIVATION))
        peak = self._take(activation)
        time.sleep(0.2)
        self.card.free(peak)
        free, _ = self.card.sizes()
        if free + self.weights > initial_free + 16 * MIB:
            msg = (
                f"Error in memory profiling. Initial free memory {gib(initial_free)} GiB, current "
                f"free memory {gib(free)} GiB. This happens when other processes sharing the same "
                "container release GPU memory while vLLM is profiling during initialization. To "
                "fix this, ensure consistent GPU memory allocation or isolate vLLM in its own "
                "container."
            )
            raise AssertionError(msg)
        # What others took meanwhile is charged to us (vllm #55827).
        taken = max(0, initial_free - free - self.weights)
        graphs = 0 if self.options["enforce_eager"] else GRAPHS
        self.kv = requested - self.weights - activation - graphs - taken
        self._check_kv()
        self.workspace = activation + graphs
        self.handles.append(self._take(self.workspace))
        self.handles.append(self._take(self.kv))
        self._say(f"Available KV cache memory: {gib(self.kv)} GiB")

    def _check_kv(self) -> None:
        if self.kv <= 0:
            msg = (
                "No available memory for the cache blocks. Try increasing "
                "`gpu_memory_utilization` when initializing the engine."
            )
            raise ValueError(msg)
        wanted = int(self.options["max_model_len"] or 32768)
        fits = self.kv // KV_PER_TOKEN
        if wanted > fits:
            msg = (
                f"To serve at least one request with the model's max seq len ({wanted}), "
                f"({gib(wanted * KV_PER_TOKEN)} GiB KV cache is needed, which is larger than the "
                f"available KV cache memory ({gib(self.kv)} GiB). Based on the available memory, "
                f"the estimated maximum model length is {fits}. Try increasing "
                "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the "
                "engine."
            )
            raise ValueError(msg)

    def _take(self, size: int, over_s: float = 0.0) -> int:
        """Allocate, growing over some seconds as a loading model does."""
        try:
            handle = self.card.alloc(size if not over_s else max(1, size // 4))
            for part in (2, 3, 4) if over_s else ():
                time.sleep(over_s / 3)
                self.card.resize(handle, size * part // 4)
        except OutOfMemory as error:
            raise MemoryError(torch_words(error)) from None
        return handle

    def _say(self, text: str) -> None:
        sys.stdout.write(f"(EngineCore pid={os.getpid()}) INFO {text}\n")
        sys.stdout.flush()

    # -- work ----------------------------------------------------------------------------------
    def run(self) -> None:
        """Serve until SIGTERM; a lost API server is not noticed, as with the real one."""
        leak(self.card, self.faults, lambda error: self._die(torch_words(error)))
        workers = max(1, int(self.options["max_num_seqs"] or 256))
        for _ in range(min(workers, 32)):
            threading.Thread(target=self._work, daemon=True).start()
        for message in self.link:
            if message["op"] == "generate":
                self.jobs.put(message)
            elif message["op"] == "cancel":
                self.cancelled.add(message["id"])
            elif message["op"] == "sleep":
                self._sleep(message["id"])
            elif message["op"] == "wake":
                self._wake(message["id"], set(message["tags"]) or {"weights", "kv_cache"})
        while True:
            signal.pause()

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            number = job["id"]
            self.faults.wait_while_hung()
            if self.faults.take("oom_next_request"):
                self._die(torch_words(OutOfMemory(2 * GIB, *self.card.sizes())))
            if self.unmapped:
                self._die(
                    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
                )
            self.link.send(id=number, started=True, prompt_tokens=job["prompt_tokens"])
            for count in range(job["max_tokens"]):
                time.sleep(float(self.faults.get("token_s", TOKEN_S)))
                self.faults.wait_while_hung()
                if number in self.cancelled:
                    self.cancelled.discard(number)
                    break
                word, last = f" {_WORDS[count % len(_WORDS)]}", count + 1 == job["max_tokens"]
                self.link.send(id=number, token=word, last=last)
            self.link.send(id=number, done=True)

    def _die(self, text: str) -> None:
        sys.stderr.write(
            f"(EngineCore pid={os.getpid()}) EngineCore encountered a fatal error.\n{text}\n"
        )
        sys.stderr.flush()
        os._exit(1)

    def _sleep(self, number: int) -> None:
        """Weights to the host, the KV cache dropped, 1 GiB stays (1-2 on the real one). Free memory
        of the whole device is compared: a neighbour that takes more meanwhile makes it fail, and then
        it is neither asleep nor usable.
        """
        # Without the flag its memory is not in the pool that can be given back.
        if self.away or not self.card.present or not self.options.get("enable_sleep_mode"):
            self.link.send(id=number, done=True)
            return
        before, total = self.card.sizes()
        spend_s = float(self.faults.get("sleep_s", 0.2))
        time.sleep(spend_s / 2)
        residual = int(float(self.faults.get("sleep_residual_mib", 1024)) * MIB) - CONTEXT_BYTES
        self.card.resize(self.handles[1], min(self.weights, max(0, residual)))
        for handle in self.handles[2:]:
            self.card.free(handle)
        del self.handles[2:]
        time.sleep(spend_s / 2)
        after, _ = self.card.sizes()
        if after < before or self.faults.get("sleep_fails"):
            self.unmapped = True
            self.link.send(id=number, error="Memory usage increased after sleeping.")
            return
        self.away = {"weights", "kv_cache"}
        self._say(
            f"Sleep mode freed {gib(after - before)} GiB memory, {gib(total - after)} GiB memory is "
            "still in use."
        )
        self.link.send(id=number, done=True)

    def _wake(self, number: int, tags: set[str]) -> None:
        """What was mapped before the memory ended stays mapped, as there."""
        if not self.away:
            self._say("WARNING Executor is not sleeping.")
        time.sleep(float(self.faults.get("wake_s", 0.2)) if self.away else 0)
        try:
            if "weights" in self.away & tags:
                self.card.resize(self.handles[1], self.weights)
                self.away.discard("weights")
            if "kv_cache" in self.away & tags:
                for size in (self.workspace, self.kv)[len(self.handles) - 2 :]:
                    self.handles.append(self.card.alloc(size))
                self.away.discard("kv_cache")
        except OutOfMemory:
            text = "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:139"
            self.link.send(id=number, error=text)
            return
        self.link.send(id=number, done=True, awake=not self.away)


_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "shares",
    "its",
    "card",
]


def main() -> int:
    """Started by the API server: socket number, options as JSON."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"VLLM::EngineCor", 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    core = Core(json.loads(sys.argv[2]), Link(sock))
    try:
        core.start()
    except (ValueError, AssertionError, MemoryError, ArbiterError) as error:
        said = str(error) if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        name = f"(EngineCore pid={os.getpid()})"
        sys.stderr.write(
            f"{name} ERROR EngineCore failed to start.\n{name} Traceback (most recent call last):\n"
            f"{name}   ...\n{name} {said}\n"
        )
        sys.stderr.flush()
        core.link.send(failed=True)
        return 1
    core.link.send(ready=True, kv_bytes=core.kv)
    core.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
