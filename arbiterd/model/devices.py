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

    ``index`` is the GPU's index in PCI bus order (a slice carries its parent's). A parent whose MIG
    mode is on stays in the inventory with ``mig_enabled`` and takes no backend.
    """

    uuid: str
    index: int
    name: str
    pci_bus_id: str
    total_bytes: int
    reserved_bytes: int
    parent_uuid: str = ""
    mig_enabled: bool = False

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
    people and may be empty.
    """

    pid: int
    ref: ProcessRef | None
    used_bytes: Reading[int]
    holder: str = ""
    unit: str = ""
    user: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class DeviceObservation:
    """What one tick knows of a device. ``state`` says why memory is unknown, if it is."""

    device: Device
    state: GpuState
    memory: Reading[Memory]
    processes: Reading[tuple[GpuProcess, ...]]
    detail: str = ""
