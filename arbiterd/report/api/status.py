"""GET /v1/status and its parts, rendered from the published snapshot (contract, section 3)."""

from __future__ import annotations

import time

from arbiterd.core.memory.placement import place, sharing
from arbiterd.model.backend import BackendView, LedgerRow
from arbiterd.model.devices import DeviceObservation
from arbiterd.model.published import Published
from arbiterd.model.reading import Known
from arbiterd.report.api import common, ladder, switch

Json = dict[str, object]


def status(published: Published, asked_host: str) -> Json:
    """Everything, one object."""
    settings, loop = published.settings, published.loop
    return {
        "version": published.version,
        "mode": settings.mode,
        "sharing": _sharing(published),
        "dry_run": settings.arbiter.dry_run,
        "launcher": loop.launcher,
        "gateway": _gateway(published),
        "config": {
            "path": settings.source.path,
            "sha256": settings.source.sha256,
            "loaded_at": common.iso(settings.source.loaded_at),
            "mode_from_env": settings.source.mode_from_env,
        },
        "switch": switch.view_json(published.decision.switch),
        "times": {
            name: {"start_s": _seconds(start), "stop_s": _seconds(stop)}
            for name, (start, stop) in published.decision.times.items()
        },
        "last_switch": switch.result_json(published.decision.last_switch),
        "config_pending": loop.config_pending,
        "config_refused": list(loop.config_refused),
        "notes": list(loop.notes) + _gateway_note(published) + _ports_note(published),
        "engine_ports": _engine_ports(published),
        "loop": {
            "tick": loop.tick,
            "period_ms": loop.period_ms,
            "last_tick_ms": round(loop.last_tick_ms, 2),
            "stalls": loop.stalls,
            "stalled_s": round(loop.stalled_s, 2),
            "late_s": round(loop.late_s, 4),
            "missed": loop.missed,
            "blind": published.decision.blind,
            "nvml": published.observation.nvml,
        },
        "gpus": gpus(published),
        "backends": backends(published, asked_host),
        "incidents_open": [common.incident(one) for one in common.open_incidents(published)],
    }


def _gateway(published: Published) -> Json:
    """The doors; what is wrong with them in one sentence, "" while they serve."""
    seen, gateway = published.observation.gateway, published.settings.gateway
    return {
        "enabled": gateway.enabled,
        "problem": seen.problem,
        "gate_problem": seen.gate_problem,
        "taken_doors": dict(seen.taken_doors),
        "reloading": gateway.enabled
        and not seen.problem
        and seen.serves != published.settings.source.sha256,
    }


def _gateway_note(published: Published) -> list[str]:
    if published.settings.gateway.enabled:
        return []
    return ["the gateway is off: engines take their public ports themselves, nothing is shed"]


def _engine_ports(published: Published) -> Json:
    """Whether local users are kept away from the engines' own ports; else why not."""
    seen = published.loop.ports
    return {"closed": seen.closed, "ports": list(seen.ports), "problem": seen.problem}


def _ports_note(published: Published) -> list[str]:
    seen, settings = published.loop.ports, published.settings
    if seen.closed or settings.arbiter.local_users == "trusted" or not settings.gateway.enabled:
        return []
    return [f"every local user can open the engines' own ports: {seen.problem}"]


def _sharing(published: Published) -> str:
    mode = published.settings.active
    devices = tuple(seen.device for seen in published.observation.devices.values())
    return sharing(mode, place(mode, devices, published.settings.arbiter.headroom_bytes))


def gpus(published: Published) -> list[Json]:
    """Every GPU and slice with its ledger."""
    return [_gpu(published, seen) for seen in published.observation.devices.values()]


def _gpu(published: Published, seen: DeviceObservation) -> Json:
    device = seen.device
    view = published.decision.devices.get(device.uuid)
    memory = seen.memory.value if isinstance(seen.memory, Known) else None
    return {
        "uuid": device.uuid,
        "index": device.index,
        "name": device.name,
        "pci_bus_id": device.pci_bus_id,
        "parent": device.parent_uuid or None,
        "state": seen.state.value,
        "detail": seen.detail,
        "memory": {
            "total": device.total_bytes,
            "reserved": device.reserved_bytes,
            "used": memory.used_bytes if memory else None,
            "free": memory.free_bytes if memory else None,
        },
        "pressure": view.pressure.value if view else "unknown",
        "time_to_full_s": view.time_to_full_s if view else None,
        "ledger": [_row(row) for row in view.rows] if view else [],
        "ladder": ladder.ladder(view),
    }


def _row(row: LedgerRow) -> Json:
    out: Json = {"holder": row.holder}
    if row.cap_bytes is not None:
        out["cap"] = row.cap_bytes
    if row.booked_bytes is not None:
        out["booked"] = row.booked_bytes
    if row.holder != "headroom":
        out["used"] = row.used_bytes
    if row.pids:
        out["pids"] = list(row.pids)
    return out


def backends(published: Published, asked_host: str) -> list[Json]:
    """Every backend."""
    return [backend(published, one, asked_host) for one in published.decision.backends.values()]


def backend(published: Published, view: BackendView, asked_host: str) -> Json:
    """One backend."""
    settings = published.settings
    wanted = settings.active.backends.get(view.name)
    return {
        "name": view.name,
        "kind": view.kind,
        "phase": view.phase.value,
        "accepting": view.accepting,
        "reason": view.reason,
        "retry_after_s": view.retry_after_s,
        "since": common.iso(view.since),
        "gpu": list(view.devices),
        "cap_bytes": view.cap_bytes,
        "learned_bytes": view.learned_bytes,
        "used_bytes": view.used_bytes,
        "pids": list(view.pids),
        "restarts": view.restarts,
        "intent": view.intent,
        "start_took_s": _seconds(view.start_took_s),
        "stop_took_s": _seconds(view.stop_took_s),
        "drained": view.drained,
        "in_flight": view.in_flight,
        "queued": view.queued,
        "throttled": view.throttled,
        "braked": ladder.braked(published, view),
        "url": common.door(settings, wanted, asked_host) if wanted else None,
        "version": published.observation.host.versions.get(view.name, ""),
        "canaries": {model: why or "kept" for model, why in view.canaries.items()},
        "health": _health(published, view.name),
    }


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _health(published: Published, name: str) -> Json:
    found = published.observation.health.get(name)
    if found is None or not isinstance(found.alive, Known):
        return {"ok": None, "latency_ms": None, "age_s": None}
    alive = found.alive
    return {
        "ok": alive.value.verdict.ok,
        "detail": alive.value.verdict.detail,
        "latency_ms": round(alive.value.latency_ms, 1),
        "age_s": round(max(0.0, time.monotonic() - alive.at), 1),
    }


def ready(view: BackendView) -> Json:
    """The body of /v1/backends/NAME/ready."""
    return {
        "backend": view.name,
        "accepting": view.accepting,
        "phase": view.phase.value,
        "reason": view.reason,
        "retry_after_s": view.retry_after_s,
    }
