"""The only process that talks to NVML. Runs as ``python -m arbiterd.sense.nvml_worker``.

A hung driver blocks a call for ever and even SIGKILL may not help (D state), so NVML lives in a child
that may be lost. It reads one JSON order a line and writes one JSON answer a line; a suspicious sample
is answered twice, the second time after AGAIN_S. Between orders it looks at free memory by itself
(looks.py): what moves or crosses its line is told at once, and something at least each BEAT_S. Started
by exec, never by fork: NVML does not survive a fork (facts/nvml.md). XIDs come as lines of their own,
from a thread (nvml_events.py).

Before the calls about a device its index goes into a shared word, so that whoever finds this process
hung knows at which device.

This module imports the standard library and pynvml only: about 15 MB.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pynvml as nv

from arbiterd.sense import looks
from arbiterd.sense.nvml_events import EventWatch
from arbiterd.sense.nvml_lines import Lines
from arbiterd.sense.nvml_looks import Looker

JUMP_BYTES = looks.MOVED_BYTES  # free memory moved so much: read at once who did it
DROP_BYTES = 256 << 20  # it fell so much, or below the limit given: look again
AGAIN_S = 0.025
BEAT_S = 1.0  # a reading is never older, however seldom the loop asks
RECOVERY_EVERY_S = 10.0
LIST_TRIES = 3  # a leak moves always; a large allocation is over by the second
NOWHERE, STARTING = -1, -2  # in the shared word: between devices; inside nvmlInit
_RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_PR_SET_PDEATHSIG = 1
_LIST_RETRIES = 3  # a list may grow between pynvml's two calls: InsufficientSize (facts/nvml.md)
_LISTS = (
    nv.nvmlDeviceGetComputeRunningProcesses,
    nv.nvmlDeviceGetGraphicsRunningProcesses,
    nv.nvmlDeviceGetMPSComputeRunningProcesses,
)
_LOST = (nv.NVML_ERROR_GPU_IS_LOST,)
_BROKEN = (nv.NVML_ERROR_UNKNOWN, nv.NVML_ERROR_RESET_REQUIRED)
Row = dict[str, Any]
_saying = threading.Lock()


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class Worker:
    """Handles are taken once; MIG handles each time, since they die with their instance."""

    def __init__(self, where: Callable[[int], None], watch: EventWatch) -> None:
        nv.nvmlInit()
        self._where = where
        self._watch = watch
        self._handles: dict[int, Any] = {}
        self._fixed: dict[int, Row] = {}
        self._free: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._sampled_us: dict[str, int] = {}
        self._recovery_at = -RECOVERY_EVERY_S
        self._order: Row = {}
        self._index = NOWHERE
        self.looker = Looker(where)
        self.suspicious = False

    def sample(self, order: Row) -> list[Row]:
        """One row per GPU and slice. A GPU that fails is a row with ``error``; others go on."""
        self._order = order
        self._limits = order.get("watch", self._limits)
        self.suspicious = False
        now = time.monotonic()
        recovery = self._watch.came or now - self._recovery_at >= RECOVERY_EVERY_S
        if recovery:
            self._watch.came, self._recovery_at = False, now
        rows: list[Row] = []
        self.looker.limits = self._limits
        self.looker.begin(now)
        only, skip = order.get("only"), order.get("skip", ())
        for index in range(nv.nvmlDeviceGetCount()):
            if index in skip or (only is not None and index not in only):
                continue
            self._where(index)
            self._index = index
            rows += [{"i": index, **row} for row in self._gpu(index, recovery=recovery)]
        self._where(NOWHERE)
        self.looker.plan()
        if order.get("events"):
            self._watch_events(rows)
        return rows

    def look(self) -> bool:
        """A look between orders; whether a sample is to be told now."""
        news = self.looker.look()
        self._where(NOWHERE)
        return news

    def _watch_events(self, rows: list[Row]) -> None:
        self._watch.slices = {
            (row["parent"], *row["instance"]): row["uuid"] for row in rows if "instance" in row
        }
        # Not those that fail: a lost GPU makes every wait return at once.
        well = {row["i"] for row in rows if "memory" in row or row.get("mig")}
        self._watch.want({self._fixed[i]["uuid"]: h for i, h in self._handles.items() if i in well})

    def _gpu(self, index: int, *, recovery: bool) -> Iterator[Row]:
        try:
            handle = self._handles.get(index) or nv.nvmlDeviceGetHandleByIndex(index)
            self._handles[index] = handle
            fixed = self._fixed.get(index) or self._fixed.setdefault(index, _identity(handle))
        except nv.NVMLError as error:
            # Known from before: the parent process keeps the inventory and knows what it was.
            yield {**self._fixed.get(index, {}), **_error(error)}
            self._handles.pop(index, None)
            return
        row = {**fixed, **_memory(handle)}
        mig = _mig_enabled(handle)
        row["mig"] = mig
        if recovery:
            row.update(_recovery(handle))
        if not mig:
            self._look(handle, row)
        yield row
        if mig:
            for part, one in _slices(handle, fixed):
                self._look(part, one)
                yield one
        if "error" in row:
            self._handles.pop(index, None)

    def _look(self, handle: Any, row: Row) -> None:
        """Read who holds the memory, when asked for or when it moved; judge the sample."""
        if row.get("state") in ("lost", "fault"):
            return  # the real library has crashed on lists of a lost GPU (facts/nvml.md)
        processes = self._order.get("processes", False)
        if "memory" in row:
            uuid, free = row["uuid"], row["memory"][3]
            before = self._free.get(uuid)
            self._free[uuid] = free
            limit = self._limits.get(uuid, 0)
            processes |= before is not None and abs(free - before) > JUMP_BYTES
            fell = before is not None and before - free > DROP_BYTES
            self.suspicious |= fell or (free < limit and (before is None or before >= limit))
        if processes:
            self._list(handle, row)
        if processes and self._order.get("utilisation"):
            row.update(self._utilisation(handle, row["uuid"]))
        if "memory" in row:
            self.looker.told(self._index, handle, row["uuid"], row["memory"][3], row["at"])

    def _list(self, handle: Any, row: Row) -> None:
        """The list between two readings of memory that agree: what an engine takes at once, 12 GiB of
        cache, would else be in one of them only, and nobody's for that sample.
        """
        for _ in range(LIST_TRIES):
            row.update(_processes(handle))
            if "memory" not in row:
                return
            row["used_before"] = row["memory"][2]
            row.update(_memory(handle))
            if "error" in row or row["memory"][2] == row["used_before"]:
                return

    def _utilisation(self, handle: Any, uuid: str) -> Row:
        """The busiest sample of each pid since the last time; none at all: NotFound."""
        since = self._sampled_us.get(uuid, 0)
        try:
            samples = nv.nvmlDeviceGetProcessUtilization(handle, since)
        except nv.NVMLError as error:
            return {"sm": []} if error.value == nv.NVML_ERROR_NOT_FOUND else {}
        busiest: dict[int, int] = {}
        for one in samples:
            since = max(since, int(one.timeStamp))
            if one.smUtil <= 100:
                busiest[one.pid] = max(busiest.get(one.pid, 0), int(one.smUtil))
        self._sampled_us[uuid] = since
        return {"sm": list(busiest.items())}


def _identity(handle: Any) -> Row:
    row: Row = {"nodes": []}
    with suppress(nv.NVMLError):
        row["nodes"] = [f"/dev/nvidia{int(nv.nvmlDeviceGetMinorNumber(handle))}"]
    return {
        **row,
        "uuid": _text(nv.nvmlDeviceGetUUID(handle)),
        "name": _text(nv.nvmlDeviceGetName(handle)),
        "bus": _text(nv.nvmlDeviceGetPciInfo(handle).busId),
    }


def _memory(handle: Any) -> Row:
    """v2 only: its used excludes reserved, so that total - reserved is CUDA's total."""
    try:
        info = nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2)
    except nv.NVMLError as error:
        return _error(error)
    return {
        "memory": [int(info.total), int(info.reserved), int(info.used), int(info.free)],
        "at": time.monotonic(),
    }


def _recovery(handle: Any) -> Row:
    """Field 230, where the driver has it (R565 and later)."""
    with suppress(nv.NVMLError):
        value = nv.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION])[0]
        if value.nvmlReturn == nv.NVML_SUCCESS:
            return {"recovery": int(value.value.uiVal)}
    return {}


def _error(error: Exception) -> Row:
    code = int(getattr(error, "value", 0) or 0)
    state = "lost" if code in _LOST else "fault" if code in _BROKEN else "unknown"
    return {"error": str(error), "state": state}


def _mig_enabled(handle: Any) -> bool:
    try:
        return bool(nv.nvmlDeviceGetMigMode(handle)[0])
    except nv.NVMLError:
        return False


def _slices(parent: Any, fixed: Row) -> Iterator[tuple[Any, Row]]:
    try:
        count = nv.nvmlDeviceGetMaxMigDeviceCount(parent)
    except nv.NVMLError:
        return
    for number in range(count):
        try:
            handle = nv.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
            uuid = _text(nv.nvmlDeviceGetUUID(handle))
        except nv.NVMLError:
            continue  # holes are possible
        if not handle:
            continue
        row = {**fixed, "uuid": uuid, "parent": fixed["uuid"], "mig": False}
        with suppress(nv.NVMLError):
            row["name"] = _text(nv.nvmlDeviceGetName(handle))
        with suppress(nv.NVMLError):
            gi = int(nv.nvmlDeviceGetGpuInstanceId(handle))
            row["instance"] = [gi, int(nv.nvmlDeviceGetComputeInstanceId(handle))]
            row["nodes"] = [*fixed["nodes"], *_capabilities(fixed["nodes"], *row["instance"])]
        yield handle, {**row, **_memory(handle)}


def _capabilities(nodes: list[str], gi: int, ci: int) -> Iterator[str]:
    """Nodes that open a slice: its GPU instance and its compute instance. The driver tells their
    numbers in /proc; they are none of NVML's.
    """
    number = nodes[0].removeprefix("/dev/nvidia") if nodes else ""
    slice_ = f"/proc/driver/nvidia/capabilities/gpu{number}/mig/gi{gi}"
    for path in (f"{slice_}/access", f"{slice_}/ci{ci}/access"):
        with suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("DeviceFileMinor:"):
                    yield f"/dev/nvidia-caps/nvidia-cap{int(line.split(':')[1])}"


def _processes(handle: Any) -> Row:
    """Merged by pid: the same process may be in several lists and must not count twice."""
    found: dict[int, int | None] = {}
    failed: Exception | None = None
    answered = False
    for call in _LISTS:
        try:
            listed = _listed(call, handle)
            answered = True
        except nv.NVMLError as error:
            failed = failed or error
            continue
        for one in listed:
            old, new = found.get(one.pid), one.usedGpuMemory
            found[one.pid] = max(old, new) if old is not None and new is not None else new or old
    if not answered:
        return {"processes_error": str(failed)}
    return {"processes": [[pid, used] for pid, used in found.items()]}


def _listed(call: Callable[[Any], list[Any]], handle: Any) -> list[Any]:
    for left in range(_LIST_RETRIES, -1, -1):
        try:
            return call(handle)
        except nv.NVMLError as error:
            if left and error.value == nv.NVML_ERROR_INSUFFICIENT_SIZE:
                continue
            raise
    return []


def _marker(fd: int) -> Callable[[int], None]:
    """Writes into the word that the parent process reads (``fd``: a memory file; -1: nowhere)."""
    if fd < 0:
        return lambda _index: None
    word = mmap.mmap(fd, mmap.PAGESIZE)
    return lambda index: struct.pack_into("i", word, 0, index)


def main() -> int:
    """Answer orders until stdin ends."""
    parent = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 0  # it died before the line above: nobody will read us
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's business
    where = _marker(int(sys.argv[2]) if len(sys.argv) > 2 else -1)
    try:
        where(STARTING)
        worker = Worker(where, EventWatch(_say))
        where(NOWHERE)
        _serve(worker, Lines(sys.stdin.fileno()))
    except nv.NVMLError as error:
        _say({"fatal": str(error), "code": int(error.value)})
        return 1
    return 0


def _serve(worker: Worker, lines: Lines) -> None:
    """Orders as they come; looks between them, once there was one."""
    order: Row = {}
    while not lines.ended:
        line = lines.next(worker.looker.rest_s() if order else BEAT_S)
        if line:
            order = json.loads(line)
            _answer(worker, order)
        elif order and not lines.ended:
            news = worker.look()
            if news or worker.looker.is_silent(BEAT_S):
                own = {**order, "processes": False, "utilisation": False, "own": True}
                own.pop("watch", None)
                _answer(worker, own, news=news)


def _answer(worker: Worker, order: Row, *, news: bool = False) -> None:
    """One sample; two where it is suspicious."""
    _tell(worker, order, again=False, wake=news)
    if worker.suspicious:
        time.sleep(AGAIN_S)
        _tell(worker, {**order, "processes": True}, again=True, wake=True)


def _tell(worker: Worker, order: Row, *, again: bool, wake: bool) -> None:
    rows = worker.sample(order)
    wake = wake or worker.suspicious
    own = again or order.get("own", False)
    _say({"seq": order["seq"], "again": own, "wake": wake, "devices": rows})


def _say(answer: Row) -> None:
    with _saying:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    code = 0
    with suppress(BrokenPipeError):
        code = main()
    os._exit(code)  # not through nvmlShutdown or a finaliser: the events' thread may be in a call
