"""CUDA_VISIBLE_DEVICES for an engine: by full UUID where its version takes it, else by index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from arbiterd.model.devices import Device
from arbiterd.model.settings import BackendSettings


def parse_version(text: str) -> tuple[int, ...] | None:
    """'0.33.0-rc2' → (0, 33, 0); None when there is no version in it."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        return None
    return tuple(int(part) for part in match.groups() if part is not None)


def device_env(
    backend: BackendSettings, devices: Sequence[Device], *, uuid_works: bool
) -> Mapping[str, str]:
    """The two variables that pin an engine to its devices.

    CUDA_DEVICE_ORDER is always PCI_BUS_ID: CUDA's default (FASTEST_FIRST) need not be NVML's order
    (vllm #7472). By index means CUDA's own, which moves when a GPU before it falls off the bus. A
    MIG slice can only be named by its UUID. No device: an empty list hides all. A container sees its
    own devices only, numbered from 0: all of them, slices too.
    """
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if not devices:
        return {**order, "CUDA_VISIBLE_DEVICES": ""}
    if backend.image and backend.device_id != "uuid":
        return {**order, "CUDA_VISIBLE_DEVICES": ",".join(str(n) for n in range(len(devices)))}
    by_uuid = backend.device_id == "uuid" or (backend.device_id == "auto" and uuid_works)
    names = [
        device.uuid if by_uuid or device.parent_uuid else str(_cuda_index(device))
        for device in devices
    ]
    return {**order, "CUDA_VISIBLE_DEVICES": ",".join(names)}


def _cuda_index(device: Device) -> int:
    return device.cuda_index if device.cuda_index >= 0 else device.index
