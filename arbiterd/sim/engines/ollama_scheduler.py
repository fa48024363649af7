"""The stand-in Ollama's scheduler: which models are loaded, in which runner, with how much on the card.

Unloading is asynchronous and interrupts nothing: a runner goes when its time is over and no request
uses it; a request that comes before re-arms it (facts/engines.md, 5.5).
"""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Link, say
from arbiterd.units import MIB, parse_duration

VERSION = "0.33.0"
MIN_VRAM = 457 * MIB
OOM_CODE = 134  # the runner aborts
FOR_EVER_S = 10 * 365 * 86400.0
LIBRARY = {  # name: (weights in bytes, KV bytes per token of context)
    "qwen2.5:3b": (1_929_912_432, 36 * 1024),
    "qwen2.5:7b": (4_683_087_332, 56 * 1024),
    "llama3.2:1b": (1_321_098_329, 32 * 1024),
    "llama3.1:8b": (4_920_753_328, 128 * 1024),
}


@dataclass(slots=True)
class Runner:
    """One llama-server process. ``keep_s``: how long it stays after its last request; ``users``:
    requests that use it now; ``ending``: its unload is under way and is not taken back.
    """

    model: str
    size: int
    vram: int
    process: subprocess.Popen[bytes]
    link: Link
    expires_at: float = 0.0
    keep_s: float = 0.0
    users: int = 0
    ending: bool = False
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
        self.changed = threading.Condition(self.lock)
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

    @contextmanager
    def using(self, name: str, options: dict[str, Any], keep: object) -> Iterator[Runner]:
        """A loaded runner for one request; loads, evicting the least recently used idle ones. Its
        keep-alive counts anew from the end of the request.

        Raises:
            RuntimeError: with Ollama's own text.
        """
        runner = self._hire(name, options)
        runner.keep_s = self.keep_s if keep is None else keep_alive(keep)
        try:
            runner.ready.wait()
            if runner.dead:
                code = runner.process.wait()
                msg = f"llama-server process has terminated: exit status {code}: cudaMalloc failed: out of memory"
                raise RuntimeError(msg)
            runner.expires_at = time.time() + runner.keep_s
            yield runner
        finally:
            with self.changed:
                runner.users -= 1
                runner.expires_at = time.time() + runner.keep_s
                self.changed.notify_all()

    def _hire(self, name: str, options: dict[str, Any]) -> Runner:
        with self.changed:
            while True:
                found = self.runners.get(name)
                if found is not None and not found.ending and not found.dead:
                    break
                if found is None and len(self.runners) < self.limit:
                    found = self.runners[name] = self._load(name, options)
                    break
                if found is None:
                    self._evict()
                self.changed.wait(0.05)
            found.users += 1
            self.runners[name] = self.runners.pop(name)  # the order is that of the last use
            return found

    def _evict(self) -> None:
        """The least recently used runner that nobody uses goes."""
        if any(one.ending for one in self.runners.values()):
            return
        for one in self.runners.values():
            if not one.users:
                one.keep_s, one.expires_at = 0.0, time.time()
                return

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
        threading.Thread(target=self._follow, args=(runner,), daemon=True).start()
        return runner

    def _follow(self, runner: Runner) -> None:
        """Until it is gone, by whatever hand: then the model is loaded again on demand."""
        runner.listen()
        code = runner.process.wait()
        if code == OOM_CODE:
            say(f"runtime OOM detected; expiring loaded models model={runner.model}")
        with self.changed:
            if self.runners.get(runner.model) is runner:
                del self.runners[runner.model]
            self.changed.notify_all()

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
        """keep_alive 0: heard at once, done when no request uses it and nothing re-arms it."""
        with self.changed:
            runner = self.runners.get(name)
            if runner is not None:
                runner.keep_s = 0.0
                if not runner.users:
                    delay_s = float(self.faults.get("unload_delay_s", 0))
                    runner.expires_at = time.time() + delay_s
                    runner.ending = runner.ending or not delay_s

    def _expire(self) -> None:
        """Ends what is due. With unload_ignored the runner stays although its time is over: that is
        what `ollama ps` shows as 'Stopping...' for ever (ollama #7606).
        """
        while True:
            time.sleep(0.02)
            stays = bool(self.faults.get("unload_ignored"))
            with self.changed:
                for one in self.runners.values():
                    due = one.ready.is_set() and not one.users and one.expires_at <= time.time()
                    one.ending = one.ending or due
                    if one.ending and not stays:
                        with suppress(ProcessLookupError):
                            one.process.kill()

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
