"""What only the hardware can tell: is the GPU there, do the caps fit, is a cap worth starting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from arbiterd.config.load import Loaded
from arbiterd.config.parse import Report
from arbiterd.core.backend.planning import launch_context
from arbiterd.core.memory.placement import headroom_bytes, place
from arbiterd.engines.vllm import overhead_bytes, spike_bytes, utilisation
from arbiterd.errors import Problem
from arbiterd.model.backend import Placement
from arbiterd.model.devices import Device
from arbiterd.model.settings import Kind, Mode, Settings
from arbiterd.quantities import format_size

Severity = Literal["error", "warning"]


def check_devices(loaded: Loaded, devices: Sequence[Device]) -> tuple[Problem, ...]:
    """Problems of every mode on these devices: errors in the active one, warnings in the others."""
    settings = loaded.settings
    report = replace(loaded.report, problems=[])
    for mode in (_readable(one, report) for one in settings.modes.values()):
        severity: Severity = "error" if mode.name == settings.mode else "warning"
        _check(replace(settings, mode=mode.name), mode, devices, report, severity)
    return (*report.errors, *report.warnings)


def _readable(mode: Mode, report: Report) -> Mode:
    """Without shares that name no device; a cap that cannot be read counts as nothing. So what is wrong
    elsewhere is found although the file cannot be loaded yet.
    """
    at = ("modes", mode.name)
    shares = {
        name: replace(share, fraction=None, size_bytes=1)
        if report.broken(*at, name, "memory")
        else share
        for name, share in mode.shares.items()
        if name in mode.backends and not report.broken(*at, name, "gpu")
    }
    return replace(mode, shares=shares)


def _check(
    settings: Settings,
    mode: Mode,
    devices: Sequence[Device],
    report: Report,
    severity: Severity,
) -> None:
    headroom = settings.arbiter.headroom_bytes
    placements = place(mode, devices, headroom)
    for name, placement in placements.items():
        if placement.wrong:
            at = ("modes", mode.name, name, "gpu")
            report.add(at, placement.wrong, placement.right, severity)
    for device in devices:
        here = {n: p.cap_bytes for n, p in placements.items() if device.uuid in p.devices}
        reserve = headroom_bytes(headroom, device)
        over = sum(here.values()) + reserve - device.capacity_bytes
        if not here or over <= 0:
            continue
        told = [n for n in here if not report.broken("modes", mode.name, n, "memory")]
        blamed = (told or list(here))[-1]
        parts = " + ".join(f"{name} {format_size(cap)}" for name, cap in here.items())
        report.add(
            ("modes", mode.name, blamed, "memory"),
            f"{parts} + headroom {format_size(reserve)} is {format_size(over)} more than the "
            f"{format_size(device.capacity_bytes)} of GPU {device.index}",
            f"lower one of them by {format_size(over)}",
            severity,
        )
    for name in placements:
        if not report.broken("modes", mode.name, name, "memory"):
            _check_size(settings, name, placements, devices, report, severity)


def _check_size(
    settings: Settings,
    name: str,
    placements: dict[str, Placement],
    devices: Sequence[Device],
    report: Report,
    severity: Severity,
) -> None:
    """A cap that does not even hold what the engine takes outside its budget."""
    placement = placements[name]
    backend = settings.active.backends[name]
    if placement.problem or not placement.devices or backend.kind is not Kind.VLLM:
        return
    by_uuid = {device.uuid: device for device in devices}
    context = launch_context(settings, name, placements, by_uuid)
    if utilisation(context) <= 0:
        least = overhead_bytes(context) + spike_bytes(placement.cap_bytes)
        report.add(
            ("modes", settings.mode, name, "memory"),
            f"{format_size(placement.cap_bytes)} does not hold vLLM's CUDA context and spikes",
            f"write more than {format_size(least)}, weights and KV cache on top",
            severity,
        )
