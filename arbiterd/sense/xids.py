"""XIDs from two mouths, each told once.

NVML's event is quick and names a MIG slice, but no pid; the kernel log has the pid. Which comes first
is chance: what one has told, the other only completes.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from arbiterd.core.memory.xids import UNKNOWN_XID
from arbiterd.model.devices import XidEvent

PAIR_S = 5.0  # the two reports of one XID are not further apart
HOLD_S = 0.3  # NVML's report waits so long for the pid, where the kernel log is read
NAMELESS_S = 5.0  # an XID of a card nobody has listed yet waits so long for its name
_KEPT = 256  # a broken card reports hundreds a second
_LINE = re.compile(
    r"NVRM: Xid \(PCI:([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.\d)?"
    r"(?: GPU-I:(\d{1,9}))?\): (\d{1,9})(?!\d)(?:, pid='?(\d{1,9}))?"
)
Bus = tuple[int, int, int]
# Finds the uuid of (PCI address, GPU instance or None); "" when not known.
Resolve = Callable[[Bus, int | None], str]


@dataclass(slots=True)
class _Report:
    event: XidEvent
    gpu: str
    kernel: bool
    told: bool = False
    paired: bool = False
    bus: Bus | None = None
    instance: int | None = None


class XidFeed:
    """Both sources write from their threads, the loop takes."""

    def __init__(self, resolve: Resolve, on_change: Callable[[], None]) -> None:
        self._resolve = resolve
        self._on_change = on_change
        self._lock = threading.Lock()
        self._reports: deque[_Report] = deque(maxlen=_KEPT)
        self.kernel_heard = False  # the kernel log can be read: its word is worth a short wait

    def from_nvml(self, uuid: str, gpu: str, code: int, at: float) -> None:
        """An event of NVML: of a slice and its GPU, or of a GPU (both the same)."""
        self._add(_Report(XidEvent(uuid, code, at), gpu, kernel=False))

    def from_kernel(self, message: str, at: float) -> None:
        """A line of the kernel log; those without an XID are ignored."""
        match = _LINE.search(message)
        if match is None:
            return
        domain, bus, device, instance, code, pid = match.groups()
        where = (int(domain, 16), int(bus, 16), int(device, 16))
        part = None if instance is None else int(instance)
        detail = message[match.start() :].strip()[:300]
        event = XidEvent(self._resolve(where, part), int(code), at, int(pid or 0), detail)
        gpu = self._resolve(where, None)
        self._add(_Report(event, gpu, kernel=True, bus=where, instance=part))

    def take(self, now: float) -> tuple[XidEvent, ...]:
        """What has come and is not told yet."""
        out: list[XidEvent] = []
        with self._lock:
            for report in self._reports:
                if not report.told and self._ripe(report, now):
                    report.told = True
                    out.append(report.event)
            self._reports = deque(
                (r for r in self._reports if not r.told or now - r.event.at <= PAIR_S), _KEPT
            )
        return tuple(out)

    def _ripe(self, report: _Report, now: float) -> bool:
        age = now - report.event.at
        if not report.event.uuid and report.bus is not None:
            uuid = self._resolve(report.bus, report.instance)
            report.event = replace(report.event, uuid=uuid)
            return bool(uuid) or age > NAMELESS_S
        return report.kernel or bool(report.event.pid) or not self.kernel_heard or age > HOLD_S

    def _add(self, new: _Report) -> None:
        with self._lock:
            twin = next((old for old in self._reports if _same(old, new)), None)
            if twin is None:
                self._reports.append(new)
            else:
                # One report answers one: a second XID of the same kind is its own.
                self._reports.remove(twin)
                self._reports.append(_joined(twin, new))
        self._on_change()


def _same(old: _Report, new: _Report) -> bool:
    """Whether they are the two reports of one XID."""
    if old.paired or old.kernel == new.kernel or old.gpu != new.gpu:
        return False
    codes = {old.event.code, new.event.code} - {UNKNOWN_XID}
    return len(codes) <= 1 and abs(old.event.at - new.event.at) <= PAIR_S


def _joined(old: _Report, new: _Report) -> _Report:
    """Both reports are in: the kernel's words, and the slice if one of them names it."""
    kernel, nvml = (old, new) if old.kernel else (new, old)
    uuid = nvml.event.uuid if nvml.event.uuid != nvml.gpu else kernel.event.uuid
    event = replace(kernel.event, uuid=uuid, at=min(old.event.at, new.event.at))
    return _Report(event, old.gpu, kernel=True, told=old.told, paired=True)
