"""The witness of tests/bench/overflow.py: nothing delays its clock but the machine.

``python -m tests.bench.overflow_witness TABLE LIB RUNTIME_SOCKET MAP``; one order a line on stdin:
``DEVICE BACKEND LINE``. It answers "watching", then one JSON line with monotonic seconds: ``crossed``
(free memory is below LINE bytes for the first time), ``braked`` (HAProxy's map says that the backend's
door holds or sheds), ``back`` (free memory is above LINE again or, where it was never crossed, a GiB
more than the least is), and the least free memory seen. It looks each millisecond.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from arbiterd.gateway import runtime
from arbiterd.quantities import GIB, MIB
from arbiterd.sim.gpu import SimGpu

LONGEST_S = 30.0


def watch(gpu: SimGpu, order: str, doors: tuple[Path, Path]) -> dict[str, float]:
    """Until all is seen, at most LONGEST_S."""
    device, backend, line = order.split()
    shut = tuple(f" st:{backend} {state}\n" for state in ("hold", "shed"))
    out: dict[str, float] = {}
    lowest, end = float("inf"), time.monotonic() + LONGEST_S
    while time.monotonic() < end and not ("braked" in out and "back" in out):
        free, now = gpu.memory(int(device))[3], time.monotonic()
        lowest = min(lowest, free)
        crossed = "crossed" in out
        if free < int(line):
            out.setdefault("crossed", now)
        elif crossed or ("braked" in out and free > lowest + GIB):
            out.setdefault("back", now)
        if "braked" not in out:
            said = runtime.ask(doors[0], f"show map {doors[1]}")
            if any(one in said for one in shut):
                out["braked"] = time.monotonic()
        time.sleep(0.001)
    return {**out, "lowest_mib": lowest / MIB}


def main() -> int:
    """Answer orders until stdin ends."""
    table, lib, socket, live_map = (Path(one) for one in sys.argv[1:5])
    gpu = None
    for order in sys.stdin:
        gpu = gpu or SimGpu.attach(table, lib)
        print("watching", flush=True)
        print(json.dumps(watch(gpu, order, (socket, live_map))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
