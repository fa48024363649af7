"""GPUs this host has ever shown, kept in state_dir/gpus.json.

A GPU that is named by the file, that an answering NVML does not list and that was never seen is a
typing error; one that was seen before is lost, and the host goes on without it (contract, 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from arbiterd.files.owned import put_aside, put_owned, read_owned, top
from arbiterd.files.strict_json import strict_json
from arbiterd.model.devices import Device

_DEVICES = TypeAdapter(tuple[Device, ...])


class Inventory:
    """Read at start, written when a new GPU shows up. ``problems`` tells of an unreadable file."""

    def __init__(self, state_dir: Path) -> None:
        self._path = top(state_dir) / "gpus.json"
        self.problems: list[str] = []
        self._known: dict[str, Device] = {}
        try:
            rows = _DEVICES.validate_python(strict_json(read_owned(self._path)))
            self._known = {row.uuid: _plausible(row) for row in rows}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            self.problems.append(put_aside(self._path, error))

    def known(self) -> tuple[Device, ...]:
        """Every GPU and slice ever seen."""
        return tuple(self._known.values())

    def learn(self, devices: Iterable[Device]) -> bool:
        """Remember these; returns whether anything was new (the caller may save then).

        A GPU that has taken over another's number, sitting in its slot, replaces it.
        """
        changed = False
        for seen in devices:
            device = replace(seen, cuda_index=-1)  # true of this moment only
            if self._known.get(device.uuid) == device:
                continue
            for old in () if device.parent_uuid else self.known():
                same = old.index == device.index and old.pci_bus_id == device.pci_bus_id
                if same and device.uuid not in (old.uuid, old.parent_uuid):
                    del self._known[old.uuid]
            self._known[device.uuid] = device
            changed = True
        return changed

    def save(self) -> None:
        """Write the file (temporary name, then rename); a full disk is no reason to stop."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            put_owned(
                self._path, json.dumps([asdict(one) for one in self._known.values()]).encode()
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
