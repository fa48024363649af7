"""The stand-in Ollama's scheduler: which models are loaded, in which runner, with how much on the card."""

from __future__ import annotations

import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Link, say
from arbiterd.units import MIB, parse_duration

VERSION = "0.33.0"
MIN_VRAM = 457 * MIB
FOR_EVER_S = 10 * 365 * 86400.0
LIBRARY = {  # name: (weights in bytes, KV bytes per token of context)
    "qwen2.5:3b": (1_929_912_432, 36 * 1024),
    "qwen2.5:7b": (4_683_087_332, 56 * 1024),
    "llama3.2:1b": (1_321_098_329, 32 * 1024),
    "llama3.1:8b": (4_920_753_328, 128 * 1024),
}


@dataclass(slots=True)
class Runner:
    """One llama-server process."""

    model: str
    size: int
    vram: int
    process: subprocess.Popen[bytes]
    link: Link
    expires_at: float = 0.0
    outputs: dict[int, queue.Queue[dict[str, Any]]] = field(default_factory=dict)
    ready: threading.Event = field(default_factory=threading.Event)
    dead: bool = False

    def listen(self) -> None:
        """Hand the runner's messages to whoever waits for them."""
        for message in self.link:
            if "ready" in message:
                self.ready.set()
            elif message["id"] in self.outputs:
                self.outputs[message["id"]].put(message)
        self.dead = True
        self.ready.set()
        for out in list(self.outputs.values()):
            out.put({"dead": True})


class State:
    """Loaded models, the scheduler's part."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.card = Card()
        self.lock = threading.RLock()
        self.runners: dict[str, Runner] = {}
        self.names = dict.fromkeys(LIBRARY, "")
        self.numbers = itertools.count(1)
        self.limit = max(1, int(os.environ.get("OLLAMA_MAX_LOADED_MODELS") or 3))
        self.keep_s = keep_alive(os.environ.get("OLLAMA_KEEP_ALIVE") or "5m")
        threading.Thread(target=self._expire, daemon=True).start()

    def version(self) -> str:
        """The version it claims."""
        return str(self.faults.get("version", VERSION))

    def known(self, name: str) -> str:
        """The library's name of a model or alias, "" for an unknown one."""
        full = name if ":" in name else f"{name}:latest"
        if full not in self.names:
            return ""
        return self.names[full] or full

    def get(self, name: str, options: dict[str, Any]) -> Runner:
        """A loaded runner; loads, evicting the least recently used ones.

        Raises:
            RuntimeError: with Ollama's own text.
        """
        with self.lock:
            found = self.runners.get(name)
            if found is not None and not found.dead:
                return found
            self.runners.pop(name, None)
            while len(self.runners) >= self.limit:
                self.unload(next(iter(self.runners)))
            runner = self._load(name, options)
            self.runners[name] = runner
        runner.ready.wait()
        if runner.dead:
            code = runner.process.wait()
            with self.lock:
                self.runners.pop(name, None)
            msg = f"llama-server process has terminated: exit status {code}: cudaMalloc failed: out of memory"
            raise RuntimeError(msg)
        return runner

    def _load(self, name: str, options: dict[str, Any]) -> Runner:
        weights, per_token = LIBRARY[name]
        weights = int(self.faults.get("weights_bytes", weights))
        context = int(options.get("num_ctx") or os.environ.get("OLLAMA_CONTEXT_LENGTH") or 4096)
        parallel = int(os.environ.get("OLLAMA_NUM_PARALLEL") or 1)
        size = weights + per_token * context * parallel + 200 * MIB
        vram = self._fit(size, options)
        plan = {"vram_bytes": vram, "load_s": float(self.faults.get("load_s", 0.4))}
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "arbiterd.sim.engines.llama_server",
                str(theirs.fileno()),
                json.dumps(plan),
            ],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        say(f"starting llama-server pid={process.pid} model={name} size={size} vram={vram}")
        runner = Runner(name, size, vram, process, Link(ours))
        threading.Thread(target=runner.listen, daemon=True).start()
        return runner

    def _fit(self, size: int, options: dict[str, Any]) -> int:
        """Bytes that go to the GPU: all, a part, or none."""
        if not self.card.present or options.get("num_gpu") == 0:
            return 0
        if options.get("num_gpu"):
            return size  # -ngl bypasses the fit
        free, _ = self.card.sizes()
        old = self.version() < "0.30"
        margin = (
            int(os.environ.get("OLLAMA_GPU_OVERHEAD") or 0)
            if old
            else (int(os.environ.get("LLAMA_ARG_FIT_TARGET") or 1024) * MIB)
        )
        room = free - margin - CONTEXT_BYTES
        if room >= size:
            return size
        return room if room >= MIN_VRAM else 0

    def unload(self, name: str) -> None:
        """End a runner; its memory returns when the process is gone."""
        with self.lock:
            runner = self.runners.pop(name, None)
        if runner is not None:
            runner.process.kill()
            runner.process.wait()

    def touch(self, runner: Runner, keep: object) -> None:
        """(Re)arm the keep-alive; 0 unloads."""
        seconds = self.keep_s if keep is None else keep_alive(keep)
        runner.expires_at = time.time() + seconds
        if seconds == 0:
            threading.Thread(target=self.unload, args=(runner.model,), daemon=True).start()

    def _expire(self) -> None:
        while True:
            time.sleep(0.1)
            with self.lock:
                due = [
                    name for name, one in self.runners.items() if 0 < one.expires_at < time.time()
                ]
            for name in due:
                self.unload(name)

    def stop(self, *_: object) -> None:
        """SIGTERM: requests are cut, runners killed, exit 0."""
        for runner in list(self.runners.values()):
            runner.process.kill()
        os._exit(0)


def keep_alive(given: object) -> float:
    """Seconds: '10m', '-1', 300; negative is for ever."""
    if isinstance(given, int | float):
        return FOR_EVER_S if given < 0 else float(given)
    text = str(given)
    if text.lstrip("-").isdigit():
        return keep_alive(int(text))
    if text.startswith("-"):
        return FOR_EVER_S
    return parse_duration(text.replace("m", "min") if text.endswith("m") else text)
