"""The ladder in the status API: per GPU its numbers, holders, candidates, reclaim and brakes; caps."""

from __future__ import annotations

from arbiterd.core.memory import learn
from arbiterd.core.memory.placement import place
from arbiterd.model.backend import BackendView, DeviceView
from arbiterd.model.pressure import LearnedCap, PressureView
from arbiterd.model.published import Published
from arbiterd.report import explain
from arbiterd.report.api import common

Json = dict[str, object]


def ladder(view: DeviceView | None) -> Json | None:
    """A device's ``ladder`` object; None before its first tick."""
    if view is None or view.detail is None:
        return None
    detail = view.detail
    return {
        "reason": explain.reason(view),
        "why": explain.sentences(view),
        "solvency_bytes": detail.solvency_bytes,
        "capacity_bytes": detail.capacity_bytes,
        "granted_bytes": detail.granted_bytes,
        "foreign_over_bytes": detail.foreign_over_bytes,
        "unattributed_bytes": detail.unattributed_bytes,
        "releasing_bytes": detail.releasing_bytes,
        "free_bytes": detail.free_bytes,
        "tight_below": detail.tight_below,
        "calm_above": detail.calm_above,
        "critical_below": detail.critical_below,
        "excess_bytes": detail.excess_bytes,
        "slope_bytes_per_s": detail.slope,
        "time_to_full_s": detail.time_to_full_s,
        "lead_s": detail.lead_s,
        "holders": [
            {
                "name": one.name,
                "over_bytes": one.over_bytes,
                "slope_bytes_per_s": one.slope,
                "growing": one.growing,
            }
            for one in detail.holders
        ],
        "candidates": [
            {
                "backend": one.backend,
                "rung": one.rung.value,
                "bytes_expected": one.bytes_expected,
                "chosen": one.chosen,
                "reason": one.reason,
            }
            for one in detail.candidates
        ],
        "reclaim": _reclaim(detail),
        "braked": dict(detail.braked),
        "loads_held": detail.loads_held,
        "disruptive": detail.disruptive,
        "disruptive_max": detail.disruptive_max,
        "fault": detail.fault,
    }


def _reclaim(detail: PressureView) -> Json | None:
    one = detail.reclaim
    if one is None:
        return None
    return {
        "rung": one.rung.value,
        "target": one.backend,
        "reason": one.reason,
        "began": common.iso(one.began),
        "bytes_expected": one.bytes_expected,
        "bytes_freed": one.bytes_freed,
        "stage": one.stage,
        "incident": one.incident,
        "text": explain.reclaim(one),
    }


def braked(published: Published, view: BackendView) -> str:
    """The brakes on one backend in words, "" for none."""
    texts = [
        device.detail.braked[view.name]
        for device in published.decision.devices.values()
        if device.detail is not None and view.name in device.detail.braked
    ]
    return "; ".join(dict.fromkeys(texts))


# -- learned caps --------------------------------------------------------------------------------------
def caps(published: Published) -> list[Json]:
    """Everything that OOMs have taught, of every mode; newest first."""
    devices = tuple(seen.device for seen in published.observation.devices.values())
    headroom = published.settings.arbiter.headroom_bytes
    configured = {
        name: place(mode, devices, headroom) for name, mode in published.settings.modes.items()
    }
    applied = _applied(published)
    out: list[Json] = []
    for one in sorted(published.decision.learned.values(), key=lambda cap: -cap.at):
        placement = configured.get(one.mode, {}).get(one.backend)
        here = placement is not None and one.gpu in placement.devices
        size = placement.cap_bytes if placement is not None and here else None
        seen = published.observation.devices.get(one.gpu)
        out.append(
            {
                "mode": one.mode,
                "backend": one.backend,
                "gpu": one.gpu,
                "index": seen.device.index if seen else None,
                "model": one.model,
                "version": one.version,
                "configured_bytes": size,
                "lowered_bytes": one.lowered_bytes,
                "cap_bytes": _cap(size, one),
                "on_cpu": one.on_cpu,
                "ooms": one.ooms,
                "at": common.iso(one.at),
                "reason": one.reason,
                "applies": one.key in applied,
            }
        )
    return out


def _cap(configured: int | None, one: LearnedCap) -> int | None:
    if one.on_cpu:
        return 0
    return None if configured is None else learn.cap_of(configured, one)


def _applied(published: Published) -> set[str]:
    """Keys of what is in force now: this mode, this model, this engine version."""
    settings, seen = published.settings, published.observation
    uuids = seen.devices.keys()
    names = settings.active.backends
    return {learn.key(settings, seen, name, uuid) for name in names for uuid in uuids}
