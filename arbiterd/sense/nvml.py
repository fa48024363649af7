"""NVML as the loop sees it: the newest sample, its age, and why there is none.

The loop never waits for NVML: it orders a sample (``request``) and takes what is there (``latest``).
After LATE_S without an answer memory is unknown (blind); after KILL_S the worker is killed and a new
one started, with back-off. A worker that will not die is left behind, at most MAX_STUCK of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

from arbiterd import procfs
from arbiterd.model.devices import (
    Device,
    DeviceObservation,
    GpuProcess,
    GpuState,
    Memory,
)
from arbiterd.model.reading import Known, Reading, Unknown

LATE_S = 1.0  # worth saying
BLIND_S = 3.0  # readings older than this decide nothing
KILL_S = 5.0
BACKOFF_S, BACKOFF_MAX_S = 1.0, 60.0
MAX_STUCK = 3  # workers in D state that not even SIGKILL ends
LOST_REINIT_S = 10.0  # a lost GPU comes back only to a new NVML session
_INIT_S = 30.0  # without persistence mode nvmlInit takes 1-3 s per GPU (facts/nvml.md)


@dataclass(frozen=True, slots=True)
class NvmlSnapshot:
    """Every device ever listed, by uuid. ``nvml``: "" while NVML answers, else why not."""

    devices: Mapping[str, DeviceObservation] = field(default_factory=dict)
    nvml: str = ""


@dataclass(slots=True)
class _Child:
    """One worker process."""

    process: subprocess.Popen[str]
    asked_at: float | None = None
    asked_seq: int = 0
    started_at: float = 0.0
    answered: bool = False
    reader: threading.Thread | None = None


class NvmlSource:
    """Owns the worker. Methods are for the loop's thread; a reader thread per worker feeds it."""

    def __init__(self, *, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._stuck: list[subprocess.Popen[str]] = []
        self._seq = 0
        self._devices: dict[str, DeviceObservation] = {}
        self._sample_at: float | None = None
        self._processes: dict[str, Reading[tuple[GpuProcess, ...]]] = {}
        self._began = time.monotonic()
        self._why = ""
        self._backoff_s = BACKOFF_S
        self._next_start = 0.0
        self._want_processes = True
        self._reinit_at = 0.0
        self._closed = False

    def start(self) -> None:
        """Start the first worker."""
        self._began = time.monotonic()
        self._spawn(self._began)

    def request(self, now: float, *, processes: bool) -> None:
        """Order a sample. While one is out, only its deadline is looked at."""
        self._want_processes |= processes
        child = self._child
        if child is None:
            if now >= self._next_start and not self._closed:
                self._spawn(now)
            return
        if child.asked_at is not None:
            limit = KILL_S if child.answered else _INIT_S
            if now - child.asked_at > limit:
                self._give_up(child, now, f"hung for {now - child.asked_at:.1f} s")
            return
        if self._reinit_due(now):
            self._retire(child)
            self._spawn(now)
            return
        self._ask(child, now)

    def latest(self, now: float) -> NvmlSnapshot:
        """The newest sample with its age judged."""
        with self._lock:
            devices, at, why = dict(self._devices), self._sample_at, self._why
        since = self._began if at is None else at
        age = now - since
        if at is not None and age <= BLIND_S and not why:
            text = f"late: no answer for {age:.1f} s" if age > LATE_S else ""
            return NvmlSnapshot(devices, text)
        if at is None and not why and age <= BLIND_S:
            return NvmlSnapshot()
        text = why or f"hung for {age:.1f} s"
        if age <= BLIND_S:
            return NvmlSnapshot(devices, text)
        return NvmlSnapshot({u: _blinded(one, text, since) for u, one in devices.items()}, text)

    def close(self) -> None:
        """End the worker; one that hangs is left to its parent-death signal."""
        self._closed = True
        child = self._child
        self._child = None
        if child is not None:
            self._retire(child)
            if child.reader is not None:
                child.reader.join(timeout=1.0)

    # -- the worker ----------------------------------------------------------------------------
    def _spawn(self, now: float) -> None:
        self._bury()
        if len(self._stuck) >= MAX_STUCK:
            with self._lock:
                self._why = f"hung: {MAX_STUCK} readers cannot be killed; the driver needs a reboot"
            self._next_start = now + BACKOFF_MAX_S
            return
        process = subprocess.Popen(
            [sys.executable, "-m", "arbiterd.sense.nvml_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        child = self._child = _Child(process, started_at=now)
        child.reader = threading.Thread(target=self._read, args=(child,), name="nvml", daemon=True)
        child.reader.start()
        self._reinit_at = now + LOST_REINIT_S
        self._ask(child, now)

    def _ask(self, child: _Child, now: float) -> None:
        self._seq += 1
        child.asked_seq, child.asked_at = self._seq, now
        order = {"seq": self._seq, "processes": self._want_processes}
        self._want_processes = False
        try:
            _pipe(child.process.stdin).write(json.dumps(order) + "\n")
        except (OSError, ValueError):
            self._give_up(child, now, "its reader ended")

    def _read(self, child: _Child) -> None:
        """Reader thread: one answer a line, until the worker ends."""
        for line in _pipe(child.process.stdout):
            with suppress(ValueError):
                self._take(child, json.loads(line))
                self._on_change_if_first(child)
        child.process.wait()
        _pipe(child.process.stdout).close()
        if self._child is child and not self._closed:
            code = child.process.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._give_up(child, time.monotonic(), f"its reader ended with {how}")
            self._on_change()

    def _on_change_if_first(self, child: _Child) -> None:
        if not child.answered:
            child.answered = True
            self._on_change()

    def _take(self, child: _Child, answer: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            if self._child is not child:
                return
            if "fatal" in answer:
                self._why = f"NVML says: {answer['fatal']}"
                return
            if answer["seq"] != child.asked_seq:
                return
            child.asked_at = None
            self._why = ""
            self._sample_at = now
            self._backoff_s = BACKOFF_S
            self._merge(answer["devices"], now)

    def _merge(self, rows: list[dict[str, Any]], now: float) -> None:
        seen: dict[str, DeviceObservation] = {}
        for index, row in _numbered(rows):
            one = self._observation(index, row, now)
            if one is not None:
                seen[one.device.uuid] = one
        for uuid, old in self._devices.items():
            if uuid not in seen:
                text = "no longer listed by NVML"
                unknown = Unknown(text, now)
                seen[uuid] = DeviceObservation(old.device, GpuState.LOST, unknown, unknown, text)
        self._devices = seen

    def _observation(self, index: int, row: dict[str, Any], now: float) -> DeviceObservation | None:
        uuid = row.get("uuid", "")
        old = self._devices.get(uuid)
        if "memory" not in row:
            if old is None:
                return None  # a hole we know nothing of: the inventory tells what is missing
            unknown = Unknown(row["error"], now)
            state = GpuState(row["state"])
            return DeviceObservation(old.device, state, unknown, unknown, row["error"])
        total, reserved, used, free = row["memory"]
        device = Device(
            uuid=uuid,
            index=index,
            name=row["name"],
            pci_bus_id=row["bus"],
            total_bytes=total,
            reserved_bytes=reserved,
            parent_uuid=row.get("parent", ""),
            mig_enabled=row["mig"],
        )
        self._keep_processes(uuid, row, now)
        memory = Known(Memory(total, reserved, used, free), now)
        unread: Reading[tuple[GpuProcess, ...]] = Unknown("not read yet", now)
        return DeviceObservation(device, GpuState.OK, memory, self._processes.get(uuid, unread), "")

    def _keep_processes(self, uuid: str, row: dict[str, Any], now: float) -> None:
        """The reading stays the same object until a new list comes: attribution goes by identity."""
        if "processes" in row:
            self._processes[uuid] = Known(
                tuple(
                    GpuProcess(pid, None, Unknown("N/A", now) if used is None else Known(used, now))
                    for pid, used in row["processes"]
                ),
                now,
            )
        elif "processes_error" in row:
            self._processes[uuid] = Unknown(row["processes_error"], now)
        elif row["mig"]:
            self._processes[uuid] = Known((), now)

    def _give_up(self, child: _Child, now: float, why: str) -> None:
        """This worker answers no more: kill it, start another after the back-off."""
        with self._lock:
            if self._child is not child:
                return
            self._child = None
            self._why = self._why or why
        self._next_start = now + self._backoff_s
        self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
        self._want_processes = True
        self._retire(child)

    def _retire(self, child: _Child) -> None:
        with suppress(OSError):
            _pipe(child.process.stdin).close()
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGKILL)
            self._stuck.append(child.process)
        self._bury()

    def _bury(self) -> None:
        """Reap what has died; never wait for what has not."""
        self._stuck = [one for one in self._stuck if one.poll() is None and procfs.ref(one.pid)]

    def _reinit_due(self, now: float) -> bool:
        lost = any(one.state is not GpuState.OK for one in self._devices.values())
        return lost and now >= self._reinit_at


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ValueError
    return stream


def _numbered(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Rows with CUDA's index: GPUs counted in PCI bus order, slices with their parent's."""
    gpus = sorted((r for r in rows if not r.get("parent") and "bus" in r), key=lambda r: r["bus"])
    index = {row["uuid"]: number for number, row in enumerate(gpus)}
    return [(index.get(r.get("parent") or r.get("uuid", ""), -1), r) for r in rows]


def _blinded(one: DeviceObservation, why: str, since: float) -> DeviceObservation:
    """What is too old is unknown, not wrong: nothing may be decided on it."""
    if one.state is not GpuState.OK:
        return one
    unknown = Unknown(why, since)
    state = GpuState.HUNG if "hung" in why else GpuState.UNKNOWN
    return replace(one, state=state, memory=unknown, processes=unknown, detail=why)
