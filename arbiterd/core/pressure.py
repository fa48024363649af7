"""Pressure bands of a device, with dwell in both directions (design, section 5).

The bands are sensed and published here. The ladder that acts on them is not part of this version.
"""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.limits import CALM_S, FREE_CRITICAL_MIN_BYTES, TIGHT_S
from arbiterd.core.state import DeviceState
from arbiterd.model.devices import DeviceObservation, GpuState, Pressure
from arbiterd.model.reading import Known


def critical_free_bytes(headroom: int) -> int:
    """Free memory under which the device is critical: max(256 MiB, a quarter of the headroom)."""
    return max(FREE_CRITICAL_MIN_BYTES, headroom // 4)


def observe(
    device: DeviceObservation, old: DeviceState, solvency: int | None, headroom: int, now: float
) -> DeviceState:
    """Count fresh samples and move the band."""
    fresh = device.state is GpuState.OK and isinstance(device.memory, Known)
    if not fresh or not isinstance(device.memory, Known):
        return DeviceState(last_sample_at=old.last_sample_at)
    state = old
    if device.memory.at > old.last_sample_at:
        state = replace(old, samples=old.samples + 1, last_sample_at=device.memory.at)
    return _band(state, device.memory.value.free_bytes, solvency, headroom, now)


def _band(
    state: DeviceState, free: int, solvency: int | None, headroom: int, now: float
) -> DeviceState:
    if free < critical_free_bytes(headroom):
        return replace(state, pressure=Pressure.CRITICAL, band_since=None)
    if solvency is None:
        return replace(state, pressure=Pressure.UNKNOWN, band_since=None)
    if state.pressure in (Pressure.CALM, Pressure.UNKNOWN):
        wants, dwell, target = solvency < headroom // 2, TIGHT_S, Pressure.TIGHT
        state = replace(state, pressure=Pressure.CALM)
    else:
        wants, dwell, target = solvency > headroom * 9 // 10, CALM_S, Pressure.CALM
        state = replace(state, pressure=Pressure.TIGHT)
    if not wants:
        return replace(state, band_since=None)
    since = state.band_since if state.band_since is not None else now
    if now - since >= dwell:
        return replace(state, pressure=target, band_since=None)
    return replace(state, band_since=since)
