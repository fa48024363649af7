"""What the worker's samples add up to: every device ever listed, and the newest reading of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from arbiterd.model.devices import (
    Device,
    DeviceObservation,
    GpuProcess,
    GpuState,
    Memory,
)
from arbiterd.model.reading import Known, Reading, Unknown
from arbiterd.sense.numbering import Numbering, Seen
from arbiterd.sense.plausible import list_problem, memory_problem

SAY_EVERY_S = 60.0  # implausible readings of a device: a storm is counted, not told
Row = Mapping[str, Any]
Processes = Reading[tuple[GpuProcess, ...]]


@dataclass(slots=True)
class _Kept:
    """Beside the observation: where NVML has the device, and what is held against its readings."""

    nvml_index: int
    total_bytes: int | None = None  # of this NVML session
    instance: tuple[int, int] | None = None
    said_at: float = -SAY_EVERY_S
    processes: Processes | None = None


class Picture:
    """Not safe for threads: its owner holds a lock. ``said``: implausible readings, for people."""

    def __init__(self, numbering: Numbering, keep_s: float) -> None:
        self.devices: dict[str, DeviceObservation] = {}
        self.said: list[str] = []
        self.numbering = numbering
        self._keep_s = keep_s  # a reading in force survives bad ones for so long
        self._kept: dict[str, _Kept] = {}
        self._numbers: dict[str, int] = {}
        self._cuda: dict[str, int] = {}

    def new_session(self) -> None:
        """Another NVML session: a card may have been reset into another size."""
        for kept in self._kept.values():
            kept.total_bytes = None

    def indices(self) -> set[int]:
        """NVML's indices of the devices that are there."""
        return {self._kept[u].nvml_index for u, one in self.devices.items() if not _lost(one)}

    def nvml_index(self, uuid: str) -> int:
        """NVML's index of a device."""
        return self._kept[uuid].nvml_index

    def resolve(self, bus: tuple[int, int, int], instance: int | None) -> str:
        """Uuid of a PCI address (domain, bus, device), or of the slice with this GPU instance where
        there is one; "" when not known.
        """
        here = [u for u, one in self.devices.items() if _address(one.device.pci_bus_id) == bus]
        if instance is not None:
            parts = [u for u in here if (self._kept[u].instance or (-1, 0))[0] == instance]
            if len(parts) == 1:
                return parts[0]
        return next((u for u in here if not self.devices[u].device.parent_uuid), "")

    def merge(self, rows: list[Row], now: float, skipped: Collection[int] = ()) -> None:
        """A sample of every device, save those at the skipped indices of NVML."""
        seen = self._read(rows, now, skipped)
        for uuid, old in self.devices.items():
            if uuid not in seen and self._kept[uuid].nvml_index not in skipped:
                seen[uuid] = self._without(old, GpuState.LOST, "no longer listed by NVML", now)
        self.devices = {**self.devices, **seen}

    def merge_one(self, rows: list[Row], now: float, index: int) -> None:
        """A sample of the device at this index of NVML only."""
        seen = self._read([row for row in rows if row["i"] == index], now, self.indices() - {index})
        self.devices = {**self.devices, **seen}

    # -- reading rows --------------------------------------------------------------------------
    def _read(
        self, rows: list[Row], now: float, elsewhere: Collection[int]
    ) -> dict[str, DeviceObservation]:
        """``elsewhere``: indices of NVML that this sample does not tell of."""
        self._number(rows, elsewhere)
        out: dict[str, DeviceObservation] = {}
        for row in rows:
            uuid = row.get("uuid", "")
            if not uuid or (uuid not in self.devices and "memory" not in row):
                continue  # a hole we know nothing of: the inventory tells what is missing
            kept = self._kept.setdefault(uuid, _Kept(row["i"]))
            kept.nvml_index = row["i"]
            if "instance" in row:
                kept.instance = (row["instance"][0], row["instance"][1])
            out[uuid] = self._observation(uuid, row, kept, now)
        return out

    def _number(self, rows: list[Row], elsewhere: Collection[int]) -> None:
        gpus = [
            Seen(r["uuid"], r["bus"], r["i"], r.get("name", ""), r.get("state") != "lost")
            for r in rows
            if r.get("uuid") and not r.get("parent")
        ]
        told = {one.uuid for one in gpus}
        for uuid, one in self.devices.items():
            index, device = self._kept[uuid].nvml_index, one.device
            if uuid not in told and not device.parent_uuid and index in elsewhere:
                gpus.append(Seen(uuid, device.pci_bus_id, index, device.name, not _lost(one)))
        known = {one.nvml_index for one in gpus}
        nameless = {row["i"] for row in rows if not row.get("uuid")}
        holes = nameless | (set(elsewhere) - known)
        self._numbers = self.numbering.number(gpus, holes)
        self._cuda = self.numbering.cuda(gpus)

    def _observation(self, uuid: str, row: Row, kept: _Kept, now: float) -> DeviceObservation:
        old = self.devices.get(uuid)
        if "memory" not in row:
            gone = self._without(self.devices[uuid], GpuState(row["state"]), row["error"], now)
            return replace(gone, recovery_action=row.get("recovery", gone.recovery_action))
        at = float(row["at"])
        memory = Memory(*row["memory"])
        gpu = row.get("parent") or uuid
        device = Device(
            uuid=uuid,
            index=self._numbers[gpu],
            name=row["name"],
            pci_bus_id=row["bus"],
            total_bytes=memory.total_bytes,
            reserved_bytes=memory.reserved_bytes,
            parent_uuid=row.get("parent", ""),
            mig_enabled=row["mig"],
            cuda_index=self._cuda.get(gpu, -1),
            nodes=tuple(row.get("nodes", ())),
        )
        wrong = memory_problem(memory, kept.total_bytes)
        if wrong:
            return self._dropped(old, device, f"implausible memory reading: {wrong}", now)
        kept.total_bytes = memory.total_bytes
        dropped, detail = (old.dropped, "") if old else (0, "")
        wrong = self._keep_processes(row, kept, memory, at)
        if wrong:
            dropped, detail = dropped + 1, f"implausible process list: {wrong}"
            self._say(device, detail, now)
        return DeviceObservation(
            device,
            GpuState.OK,
            Known(memory, at),
            kept.processes or Unknown("not read yet", now),
            detail,
            row.get("recovery", old.recovery_action if old else 0),
            dropped,
        )

    def _dropped(
        self, old: DeviceObservation | None, device: Device, why: str, now: float
    ) -> DeviceObservation:
        """This reading is none: the one before stays in force for a while, with its own time."""
        self._say(device, why, now)
        dropped = 1 + (old.dropped if old else 0)
        if old is None:
            unknown = Unknown(why, now)
            return DeviceObservation(
                device, GpuState.UNKNOWN, unknown, unknown, why, dropped=dropped
            )
        good = isinstance(old.memory, Known) and now - old.memory.at <= self._keep_s
        kept = old if good else self._without(old, GpuState.UNKNOWN, why, now)
        return replace(kept, dropped=dropped, detail=why)

    def _say(self, device: Device, why: str, now: float) -> None:
        kept = self._kept[device.uuid]
        if now - kept.said_at >= SAY_EVERY_S:
            kept.said_at = now
            self.said.append(f"GPU {device.index} ({device.name}): {why}; thrown away")

    def _keep_processes(self, row: Row, kept: _Kept, memory: Memory, at: float) -> str:
        """The reading stays the same object until a new list comes: attribution goes by identity.
        Returns why a list was thrown away.
        """
        if "processes" in row:
            most = max(memory.used_bytes, row.get("used_before", 0))
            wrong = list_problem(most, (used for _, used in row["processes"]))
            if wrong:
                old = kept.processes
                if not isinstance(old, Known) or at - old.at > self._keep_s:
                    kept.processes = Unknown(f"implausible: {wrong}", at)
                return wrong
            busy = dict(row["sm"]) if "sm" in row else None
            kept.processes = Known(
                tuple(
                    GpuProcess(
                        pid,
                        None,
                        Unknown("N/A", at) if used is None else Known(used, at),
                        sm_percent=None if busy is None else busy.get(pid, 0),
                    )
                    for pid, used in row["processes"]
                ),
                at,
            )
        elif "processes_error" in row:
            kept.processes = Unknown(row["processes_error"], at)
        elif row["mig"]:
            kept.processes = Known((), at)
        return ""

    def _without(
        self, old: DeviceObservation, state: GpuState, why: str, since: float
    ) -> DeviceObservation:
        """A device whose readings are gone."""
        self._kept[old.device.uuid].processes = None
        unknown = Unknown(why, since)
        device = replace(old.device, cuda_index=-1) if state is GpuState.LOST else old.device
        return replace(
            old, device=device, state=state, memory=unknown, processes=unknown, detail=why
        )


def _lost(one: DeviceObservation) -> bool:
    return one.state is GpuState.LOST


def _address(bus_id: str) -> tuple[int, int, int] | None:
    """'00000000:61:00.0' as (domain, bus, device)."""
    try:
        domain, bus, device = bus_id.split(".", maxsplit=1)[0].split(":")
        return int(domain, 16), int(bus, 16), int(device, 16)
    except ValueError:
        return None
