"""The stand-in's llama-server: one process per loaded model; holds the memory, makes the tokens.

Its command line is the real one's; what only a stand-in needs comes by LLAMA_SIM_PLAN. No
parent-death signal: killing ``ollama serve`` leaves it behind with its memory (ollama #5642).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import threading
import time
from typing import Any

from arbiterd.quantities import MIB
from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Link, say
from arbiterd.sim.engines.growth import Grower, leak
from arbiterd.sim.gpu import OutOfMemory

TOKEN_S = 0.02
PLAN_ENV = "LLAMA_SIM_PLAN"
_VARIED = 12  # tokens before a repeating one begins to say the same for ever
_WORDS = [
    "one",
    "card",
    "can",
    "serve",
    "three",
    "engines",
    "when",
    "somebody",
    "keeps",
    "the",
    "peace",
]


def main() -> int:
    """LLAMA_SIM_PLAN: {"socket": number, "vram_bytes": ..., "load_s": ..., "slots": ...}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan: dict[str, Any] = json.loads(os.environ[PLAN_ENV])
    link = Link(socket.socket(fileno=int(plan["socket"])))
    faults, card = Faults(), Card()
    vram = int(plan["vram_bytes"])
    try:
        if vram and card.present:
            handle = card.alloc(CONTEXT_BYTES)
            time.sleep(float(plan["load_s"]))
            card.resize(handle, CONTEXT_BYTES + vram)
        else:
            time.sleep(float(plan["load_s"]))
    except OutOfMemory:
        size = vram / 2**20
        say(
            f"ggml_backend_cuda_buffer_type_alloc_buffer: allocating {size:.2f} MiB on device 0: cudaMalloc failed: out of memory"
        )
        return 1
    link.send(ready=True)
    leak(card, faults, _die)
    Grower(
        card,
        lambda: float(faults.get("grow_mib_per_s", 0)) * MIB,
        most=lambda: float(faults.get("grow_max_mib", "inf")) * MIB,
        on_oom=_die,
    ).start()
    slots = _Slots(link, faults, int(plan["slots"]))
    for message in link:
        slots.take(message)
    while True:
        signal.pause()


def _die(error: OutOfMemory) -> None:
    """ggml's own words, then its abort."""
    say(
        f"ggml_backend_cuda_buffer_type_alloc_buffer: allocating {error.asked_bytes / MIB:.2f} MiB on "
        "device 0: cudaMalloc failed: out of memory\nCUDA error: out of memory"
    )
    os._exit(134)


class _Slots:
    """As many requests at a time as --parallel; the others wait in order."""

    def __init__(self, link: Link, faults: Faults, count: int) -> None:
        self._link, self._faults = link, faults
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._dropped: set[int] = set()
        for _ in range(count):
            threading.Thread(target=self._work, daemon=True).start()

    def take(self, message: dict[str, Any]) -> None:
        """A request, its end by the client, or a question whether it lives."""
        if "ping" in message:
            self._link.send(id=message["id"], pong=True)
        elif "cancel" in message:
            self._dropped.add(message["id"])
        else:
            self._jobs.put(message)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            self._faults.wait_while_hung()
            if job["id"] in self._dropped:
                continue
            if self._faults.take("oom_next_request"):
                say("CUDA error: out of memory")
                os._exit(134)
            self._generate(job)
            self._dropped.discard(job["id"])

    def _generate(self, job: dict[str, Any]) -> None:
        number, most, count = job["id"], job["tokens"], 0
        while most is None or count < most:
            time.sleep(float(self._faults.get("token_s", TOKEN_S)))
            self._faults.wait_while_hung()
            if number in self._dropped:
                return
            self._link.send(id=number, token=_token(count, job["style"]))
            count += 1
        self._link.send(id=number, done=True)


def _token(count: int, style: str) -> str:
    if style == "repeats":
        return "(" if count < _VARIED and count % 2 else "["
    if style == "letters":
        return "eakoqtwrl"[count % 9]
    return f"{_WORDS[count % len(_WORDS)]} "


if __name__ == "__main__":
    raise SystemExit(main())
