"""The only process that talks to NVML. Runs as ``python -m arbiterd.sense.nvml_worker``.

A hung driver blocks a call for ever and even SIGKILL may not help (D state), so NVML lives in a child
that may be lost. It reads one JSON request a line, ``{"seq": 1, "processes": true}``, and writes one
JSON answer a line. Started by exec, never by fork: NVML does not survive a fork (facts/nvml.md).

This module imports the standard library and pynvml only: about 15 MB.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pynvml as nv

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


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class Worker:
    """Handles are taken once; MIG handles each time, since they die with their instance."""

    def __init__(self) -> None:
        nv.nvmlInit()
        self._handles: dict[int, Any] = {}
        self._fixed: dict[int, Row] = {}

    def sample(self, *, processes: bool) -> list[Row]:
        """One row per GPU and slice. A GPU that fails is a row with ``error``; others go on."""
        rows: list[Row] = []
        for index in range(nv.nvmlDeviceGetCount()):
            rows.extend(self._gpu(index, processes=processes))
        return rows

    def _gpu(self, index: int, *, processes: bool) -> Iterator[Row]:
        try:
            handle = self._handles.get(index) or nv.nvmlDeviceGetHandleByIndex(index)
            self._handles[index] = handle
            fixed = self._fixed.get(index) or self._fixed.setdefault(index, _identity(handle))
        except nv.NVMLError as error:
            # Known from before: the parent process keeps the inventory and knows what it was.
            yield {**self._fixed.get(index, {}), "hole": index, **_error(error)}
            self._handles.pop(index, None)
            return
        row = {**fixed, **_memory(handle)}
        if "error" in row:
            self._handles.pop(index, None)
        mig = _mig_enabled(handle)
        row["mig"] = mig
        if processes and not mig:
            row.update(_processes(handle))
        yield row
        if mig:
            yield from _slices(handle, fixed, processes=processes)


def _identity(handle: Any) -> Row:
    return {
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
    }


def _error(error: Exception) -> Row:
    code = int(getattr(error, "value", 0) or 0)
    state = "lost" if code in _LOST else "fault" if code in _BROKEN else "unknown"
    return {"error": str(error), "state": state}


def _mig_enabled(handle: Any) -> bool:
    try:
        return bool(nv.nvmlDeviceGetMigMode(handle)[0])
    except nv.NVMLError:
        return False


def _slices(parent: Any, fixed: Row, *, processes: bool) -> Iterator[Row]:
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
        name = fixed["name"]
        with suppress(nv.NVMLError):
            name = _text(nv.nvmlDeviceGetName(handle))
        row = {**fixed, "uuid": uuid, "name": name, "parent": fixed["uuid"], "mig": False}
        row.update(_memory(handle))
        if processes:
            row.update(_processes(handle))
        yield row


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


def main() -> int:
    """Answer requests until stdin ends."""
    parent = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 0  # it died before the line above: nobody will read us
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's business
    try:
        worker = Worker()
    except nv.NVMLError as error:
        _say({"fatal": str(error), "code": int(error.value)})
        return 1
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _say({"seq": asked["seq"], "devices": worker.sample(processes=asked["processes"])})
        except nv.NVMLError as error:
            _say({"fatal": str(error), "code": int(error.value)})
            return 1
    return 0


def _say(answer: Row) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
