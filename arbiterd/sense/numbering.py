"""Which GPU the file means by a number: bound to the uuid when first seen, for good.

NVML's and CUDA's indices are places in PCI bus order among the GPUs that are there; when one falls
off the bus, those after it move up. A backend with ``gpu = 1`` must not move to another card then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arbiterd.model.devices import Device


@dataclass(frozen=True, slots=True)
class Seen:
    """A whole GPU of a sample: NVML's index, and whether it answers (CUDA counts it)."""

    uuid: str
    bus: str
    nvml_index: int
    name: str = ""
    counted: bool = True


class Numbering:
    """Numbers by uuid. ``said``: what people should know; taken out by the owner."""

    def __init__(self, known: Iterable[Device] = ()) -> None:
        self._bound: dict[str, tuple[int, str]] = {}
        self._told: set[tuple[str, int]] = set()
        self.said: list[str] = []
        for device in known:
            numbers = {number for number, _ in self._bound.values()}
            if not device.parent_uuid and device.index >= 0 and device.index not in numbers:
                self._bound[device.uuid] = (device.index, device.pci_bus_id)

    def number(self, seen: Sequence[Seen], holes: Iterable[int] = ()) -> dict[str, int]:
        """The number of each GPU of a sample. ``holes``: NVML's indices that name nobody now."""
        empty = sorted(holes)
        for place, one in enumerate(sorted(seen, key=lambda gpu: gpu.bus)):
            if one.uuid not in self._bound:
                before = sum(1 for hole in empty if hole < one.nvml_index)
                self._bind(one, place + before, {gpu.uuid for gpu in seen})
        return {one.uuid: self._bound[one.uuid][0] for one in seen}

    def cuda(self, seen: Sequence[Seen]) -> dict[str, int]:
        """What CUDA counts each as now; says so once where that is not its number."""
        counted = sorted((one for one in seen if one.counted), key=lambda gpu: gpu.bus)
        out = {one.uuid: place for place, one in enumerate(counted)}
        for one in counted:
            number, place = self._bound[one.uuid][0], out[one.uuid]
            if number != place and (one.uuid, place) not in self._told:
                self._told.add((one.uuid, place))
                self.said.append(
                    f"CUDA and nvidia-smi count GPU {number} ({one.name}, {one.uuid}) as {place} now; "
                    f"gpu = {number} still means this card"
                )
        return out

    def _bind(self, one: Seen, place: int, present: set[str]) -> None:
        """A GPU nobody has seen: it takes over a slot, or its place, or the next free number."""
        for uuid, (number, bus) in list(self._bound.items()):
            if bus == one.bus and uuid not in present:
                del self._bound[uuid]
                self._bound[one.uuid] = (number, one.bus)
                self.said.append(
                    f"GPU {number} is {one.name}, {one.uuid} now: it sits where {uuid} was ({one.bus})"
                )
                return
        taken = {number for number, _ in self._bound.values()}
        number = place
        if place in taken:
            number = next(n for n in range(len(taken) + 1) if n not in taken)
        self._bound[one.uuid] = (number, one.bus)
