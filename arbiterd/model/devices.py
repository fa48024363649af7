"""GPUs and MIG slices as NVML tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from arbiterd.model.reading import Reading


class GpuState(StrEnum):
    """State of a device as published (contract, section 3)."""

    OK = "ok"
    LOST = "lost"
    HUNG = "hung"
    FAULT = "fault"
    UNKNOWN = "unknown"


class Pressure(StrEnum):
    """Pressure band of a device."""

    CALM = "calm"
    TIGHT = "tight"
    CRITICAL = "critical"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or a MIG slice: anything that has memory of its own.

    ``index`` is the number by which the file names the GPU: its place in PCI bus order when it was
    first seen, bound to the uuid from then on (a slice carries its parent's). ``cuda_index`` is its
    place among the GPUs that are there now, as CUDA counts them under CUDA_DEVICE_ORDER=PCI_BUS_ID;
    -1: not counted, or not known. A parent whose MIG mode is on stays in the inventory with
    ``mig_enabled`` and takes no backend. ``nodes``: its device nodes beside the driver's common ones,
    by NVML's minor number: /dev/nvidiaN, for a slice also its nodes in /dev/nvidia-caps.
    """

    uuid: str
    index: int
    name: str
    pci_bus_id: str
    total_bytes: int
    reserved_bytes: int
    parent_uuid: str = ""
    mig_enabled: bool = False
    cuda_index: int = -1
    nodes: tuple[str, ...] = ()

    @property
    def capacity_bytes(self) -> int:
        """Total - reserved: what CUDA calls total (docs/facts/nvml.md)."""
        return self.total_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """One NVML v2 memory reading, bytes: reserved + used + free = total."""

    total_bytes: int
    reserved_bytes: int
    used_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """Identity of a process: pid and start time (field 22 of /proc/PID/stat, clock ticks)."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process NVML lists on a device, already attributed.

    ``holder`` is the backend that owns it (by cgroup, or by tag and process tree under the direct
    launcher), "" when it is none of ours (foreign). ``ref`` is None for a ghost: a pid that NVML
    names and /proc does not know; never signal one. ``unit``, ``user``, ``command`` name it to
    people and may be empty. ``sm_percent``: the busiest SM utilisation NVML has sampled since it was
    last asked, 0 to 100; None: not asked for, or not to be had (MIG, no rights).
    """

    pid: int
    ref: ProcessRef | None
    used_bytes: Reading[int]
    holder: str = ""
    unit: str = ""
    user: str = ""
    command: str = ""
    sm_percent: int | None = None


@dataclass(frozen=True, slots=True)
class XidEvent:
    """The driver reports an error (XID ``code``) of a device at ``at`` (monotonic seconds).

    ``uuid``: the MIG slice when the event names one, else the GPU; "" when nobody knows the card.
    ``pid``: whose doing, 0 when not told (only the kernel log tells). ``detail``: the driver's own
    words, "" when only NVML reported it. Meaning of the codes: core/memory/xids.py.
    """

    uuid: str
    code: int
    at: float
    pid: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeviceObservation:
    """What one tick knows of a device. ``state`` says why memory is unknown, if it is.

    ``memory.at`` is when the driver was read: a second look has another ``at``. ``recovery_action``
    is NVML's field 230: 0 none, 1 reset the GPU, 2 reboot, 3 drain P2P, 4 drain and reset (...,
    docs/facts/nvml.md). ``dropped``: implausible readings thrown away since the daemon started;
    ``detail`` then names the last one while it is newer than the reading in force.
    """

    device: Device
    state: GpuState
    memory: Reading[Memory]
    processes: Reading[tuple[GpuProcess, ...]]
    detail: str = ""
    recovery_action: int = 0
    dropped: int = 0
