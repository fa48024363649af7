"""The stand-in's llama-server: one process per loaded model; holds the memory, makes the tokens.

No parent-death signal: killing ``ollama serve`` leaves it behind with its memory (ollama #5642).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults, Link, say
from arbiterd.sim.engines.growth import Grower, leak
from arbiterd.sim.gpu import OutOfMemory
from arbiterd.units import MIB

TOKEN_S = 0.02
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
    """Started by the stand-in Ollama: socket number, {"vram_bytes": ..., "load_s": ...} as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    plan: dict[str, Any] = json.loads(sys.argv[2])
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
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_work, args=(jobs, link, faults), daemon=True).start()
    for message in link:
        jobs.put(message)
    while True:
        signal.pause()


def _die(error: OutOfMemory) -> None:
    """ggml's own words, then its abort."""
    say(
        f"ggml_backend_cuda_buffer_type_alloc_buffer: allocating {error.asked_bytes / MIB:.2f} MiB on "
        "device 0: cudaMalloc failed: out of memory\nCUDA error: out of memory"
    )
    os._exit(134)


def _work(jobs: queue.Queue[dict[str, Any]], link: Link, faults: Faults) -> None:
    while True:
        job = jobs.get()
        faults.wait_while_hung()
        if faults.take("oom_next_request"):
            say("CUDA error: out of memory")
            os._exit(134)
        for count in range(int(job["tokens"])):
            time.sleep(float(faults.get("token_s", TOKEN_S)))
            faults.wait_while_hung()
            link.send(id=job["id"], token=f"{_WORDS[count % len(_WORDS)]} ")
        link.send(id=job["id"], done=True)


if __name__ == "__main__":
    sys.exit(main())
