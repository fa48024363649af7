"""What the NVML worker, the kernel's log and the units tell."""

from __future__ import annotations

import time
from typing import Any

from arbiterd.model.reading import Known
from arbiterd.sense.kernel_log import KernelLog
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sense.nvml_answers import parsed
from arbiterd.sense.processes import attribute
from arbiterd.sense.xids import XidFeed
from tests.fuzz import shapes
from tests.fuzz.target import Target

UUID = "GPU-0c0ffee0-0000-0000-0000-000000000000"
PART = "MIG-0c0ffee0-0000-0000-0000-000000000001"
GIB = 1 << 30
ROW = {"i": 0, "uuid": UUID, "name": "NVIDIA GeForce RTX 4090", "bus": "00000000:10:00.0", "at": 1000.0, "mig": False,
       "memory": [24 * GIB, GIB // 2, 5 * GIB, 18 * GIB], "processes": [[1, GIB], [2, None]], "recovery": 0,
       "sm": [[1, 5]], "used_before": 5 * GIB}  # fmt: skip
SLICE = {"i": 0, "uuid": PART, "name": "MIG 1g", "bus": "00000000:10:00.0", "at": 1000.0, "mig": False, "parent": UUID,
         "instance": [7, 0], "memory": [5 * GIB, 0, GIB, 4 * GIB], "processes": []}  # fmt: skip
LOST = {
    "i": 1,
    "uuid": UUID,
    "bus": "00000000:10:00.0",
    "name": "x",
    "state": "lost",
    "error": "GPU is lost",
}
ANSWERS = (
    {"seq": 1, "again": False, "wake": False, "devices": [ROW]},
    {"seq": 1, "again": True, "wake": True, "devices": [{**ROW, "mig": True}, SLICE]},
    {"seq": 2, "again": False, "wake": False, "devices": [LOST]},
    {"seq": 2, "again": False, "wake": False, "devices": [{"i": 0, "state": "unknown", "error": "x"}]},
    {"xid": 79, "uuid": UUID, "gpu": UUID, "at": 1000.0},
    {"events": True},
    {"fatal": "Driver Not Loaded", "code": 9},
)  # fmt: skip
XID = "NVRM: Xid (PCI:0000:10:00): 79, pid='1234', name=python, GPU has fallen off the bus."
ENTRY = {"MESSAGE": XID, "__REALTIME_TIMESTAMP": "4102444800000000"}


class _Child:
    """A worker that only has been asked."""

    def __init__(self) -> None:
        self.asked_at: float | None = 1.0
        self.asked_seq = 1
        self.answered = False


def read_answers(data: bytes) -> None:
    """Lines of the worker: a good one before and after is read as if the odd ones had not been there."""
    source = NvmlSource()
    child: Any = _Child()
    source._child = child
    good = shapes.write(ANSWERS[0]).decode()
    for line in (good, *data.decode("utf-8", "replace").split("\n"), good):
        answer = parsed(line)
        if answer is not None:
            source._take(child, answer)
        snapshot = source.latest(time.monotonic())
        attribute(snapshot, lambda _pid: None, {})
        source.said()
        source.xids(time.monotonic())
        for one in snapshot.devices.values():
            if isinstance(one.memory, Known):
                total, reserved, used, free = (
                    one.memory.value.total_bytes, one.memory.value.reserved_bytes,
                    one.memory.value.used_bytes, one.memory.value.free_bytes,
                )  # fmt: skip
                assert 0 <= used <= total
                assert 0 <= free <= total
                assert 0 <= reserved <= total
    assert not source._why.text
    assert UUID in source.latest(time.monotonic()).devices


def read_kernel(data: bytes) -> None:
    """A line of ``journalctl -k -o json``, and the sentence in it."""
    feed = XidFeed(lambda _bus, _part: "", lambda: None)
    log = KernelLog.__new__(KernelLog)
    log._began_wall_us, log._on_message = 0, feed.from_kernel
    log._take(data)
    feed.from_kernel(data.decode("utf-8", "replace"), 1.0)
    assert all(0 <= one.code < 1 << 32 for one in feed.take(1e9))


TARGETS = (
    Target("NVML worker's answers", read_answers, shapes.documents(*ANSWERS), seeds=tuple(map(shapes.write, ANSWERS))),
    Target("kernel log", read_kernel, shapes.documents(ENTRY), seeds=(shapes.write(ENTRY), XID.encode())),
)  # fmt: skip
