"""GPUs this host has ever shown, kept in state_dir/gpus.json.

A GPU that is named by the file, that an answering NVML does not list and that was never seen is a
typing error; one that was seen before is lost, and the host goes on without it (contract, 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from arbiterd.model.devices import Device
from arbiterd.store.json_store import JsonStore

_DEVICES = TypeAdapter(tuple[Device, ...])


class Inventory:
    """Read at start, written when a new GPU shows up. ``store.problems`` tells of an unreadable file."""

    def __init__(self, state_dir: Path) -> None:
        self.store = _store(state_dir)
        self._known = {row.uuid: row for row in self.store.load()}

    def known(self) -> tuple[Device, ...]:
        """Every GPU and slice ever seen."""
        return tuple(self._known.values())

    def learn(self, devices: Iterable[Device]) -> None:
        """Remember these.

        A GPU that has taken over another's number, sitting in its slot, replaces it.
        """
        for seen in devices:
            device = replace(seen, cuda_index=-1)  # true of this moment only
            if self._known.get(device.uuid) == device:
                continue
            for old in () if device.parent_uuid else self.known():
                same = old.index == device.index and old.pci_bus_id == device.pci_bus_id
                if same and device.uuid not in (old.uuid, old.parent_uuid):
                    del self._known[old.uuid]
            self._known[device.uuid] = device
        self.store.save(self.known())


def shown(state_dir: Path) -> tuple[Device, ...]:
    """Those of the daemon's last run, for arbiterctl: changes nothing."""
    return _store(state_dir).look()[0]


def _store(state_dir: Path) -> JsonStore[tuple[Device, ...]]:
    return JsonStore(
        state_dir / "gpus.json",
        lambda rows: tuple(map(_plausible, _DEVICES.validate_python(rows))),
        lambda devices: [asdict(one) for one in devices],
        absent=(),
        sync=True,
    )


def _plausible(row: Device) -> Device:
    """The same row: the arithmetic of caps starts from these numbers.

    Raises:
        ValueError: a number that no GPU has.

    """
    if row.index < 0 or not 0 <= row.reserved_bytes <= row.total_bytes:
        msg = (
            f"{row.uuid}: expected index 0 or more and reserved_bytes between 0 and total_bytes, "
            f"found index {row.index}, reserved_bytes {row.reserved_bytes}, total_bytes {row.total_bytes}"
        )
        raise ValueError(msg)
    return row
