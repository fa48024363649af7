"""Where each backend of a mode lives, and its cap there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from arbiterd.core.limits import HEADROOM_FRACTION, HEADROOM_MAX_BYTES, HEADROOM_MIN_BYTES
from arbiterd.errors import Flaw
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.model.settings import GpuRef, Mode, Share
from arbiterd.quantities import format_size


def headroom_bytes(setting: int | None, device: Device) -> int:
    """The part of a device that is never handed out, bytes.

    ``setting`` None is auto: 4 % of capacity, at least 512 MiB, at most 2 GiB (contract, 2).
    """
    if setting is not None:
        return setting
    share = int(device.capacity_bytes * HEADROOM_FRACTION)
    return max(HEADROOM_MIN_BYTES, min(HEADROOM_MAX_BYTES, share))


def place(
    mode: Mode, devices: Sequence[Device], headroom_setting: int | None
) -> dict[str, Placement]:
    """Resolve every share of a mode against the inventory.

    What cannot be placed gets a Placement with ``wrong`` set, no devices and no cap: the others
    are not held up by it.
    """
    found = {name: _devices(share, devices) for name, share in mode.shares.items()}
    holders: dict[str, int] = {}
    for one in found.values():
        for device in one if not isinstance(one, Flaw) else ():
            holders[device.uuid] = holders.get(device.uuid, 0) + 1
    out: dict[str, Placement] = {}
    for name, share in mode.shares.items():
        where = found[name]
        if isinstance(where, Flaw):
            out[name] = Placement(name, (), 0, *where)
        elif not where:
            out[name] = Placement(name, (), 0)
        else:
            alone = all(holders[device.uuid] == 1 for device in where)
            cap = _cap(share, where, headroom_setting, alone=alone)
            uuids = tuple(device.uuid for device in where)
            told = cap if isinstance(cap, Flaw) else ()
            out[name] = Placement(name, uuids, 0 if isinstance(cap, Flaw) else cap, *told)
    return out


def sharing(mode: Mode, placements: Mapping[str, Placement]) -> Literal["shared", "partitioned"]:
    """Shared when all GPU backends name one device (contract, 2), else partitioned."""
    sets = {p.devices for p in placements.values() if p.devices}
    gpus = {ref for share in mode.shares.values() if not share.cpu for ref in share.gpus}
    return "shared" if len(sets) <= 1 and len(gpus) <= 1 else "partitioned"


def _devices(share: Share, devices: Sequence[Device]) -> tuple[Device, ...] | Flaw:
    """The devices of a share, or why they cannot be had."""
    if share.cpu:
        return ()
    gpus = [d for d in devices if not d.parent_uuid]
    if not share.gpus:
        if len(gpus) == 1 and not gpus[0].mig_enabled:
            return (gpus[0],)
        count = f"this host has {len(gpus)} GPUs" if len(gpus) != 1 else "its GPU is in MIG mode"
        return Flaw(f"no gpu is named and {count}", f"write gpu = one of {_names(devices)}")
    out: list[Device] = []
    for ref in share.gpus:
        device = _find(ref, devices)
        if isinstance(device, Flaw):
            return device
        out.append(device)
    if len(out) > 1 and any(device.parent_uuid for device in out):
        return Flaw("a process can use one MIG slice only", "name one slice, or whole GPUs")
    return tuple(out)


def _find(ref: GpuRef, devices: Sequence[Device]) -> Device | Flaw:
    if ref.kind == "index":
        match = next((d for d in devices if not d.parent_uuid and d.index == int(ref.value)), None)
    else:
        match = next((d for d in devices if d.uuid == ref.value), None)
    if match is None:
        return Flaw(f"there is no GPU {ref.value} on this host", f"there is {_names(devices)}")
    if match.mig_enabled:
        own = [_label(d) for d in devices if d.parent_uuid == match.uuid]
        slices = ", ".join(own) or "none yet; docs/walls.md says how to make them"
        wrong = f"GPU {ref.value} is in MIG mode and takes no backend itself"
        return Flaw(wrong, f"its slices: {slices}")
    return match


def _names(devices: Sequence[Device]) -> str:
    return ", ".join(_label(d) for d in devices if not d.mig_enabled) or "no GPU"


def _label(device: Device) -> str:
    if device.parent_uuid:
        size = format_size(device.capacity_bytes)
        return f"{device.uuid} (a MIG slice of GPU {device.index}, {size})"
    return f"{device.index} ({device.name})"


def _cap(
    share: Share, devices: Sequence[Device], headroom_setting: int | None, *, alone: bool
) -> int | Flaw:
    """The cap per device: the smallest, when a list of unequal cards is named."""
    smallest = min(devices, key=lambda device: device.capacity_bytes)
    if share.fraction is not None:
        return int(smallest.capacity_bytes * share.fraction)
    if share.size_bytes is not None:
        return share.size_bytes
    if not alone:
        return Flaw("it shares its GPU but has no memory", "write memory = a size or a percentage")
    return smallest.capacity_bytes - headroom_bytes(headroom_setting, smallest)
