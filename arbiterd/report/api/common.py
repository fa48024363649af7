"""Small renderings that status, routes and metrics share."""

from __future__ import annotations

from datetime import UTC, datetime

from arbiterd.model.events import Incident
from arbiterd.model.published import Published
from arbiterd.model.settings import BackendSettings, Settings

LATEST = 253402300799.0  # the last second of the year 9999, where datetime ends


def iso(epoch_s: float) -> str:
    """Wall time as ISO 8601 with zone; one that is none is the nearest that is."""
    epoch_s = min(max(epoch_s, 0.0), LATEST)
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")


def door(settings: Settings, backend: BackendSettings, asked_host: str) -> str:
    """The public URL of a backend, on the host that the asker can reach.

    ``gateway.advertise`` wins; else the address the request came in on.
    """
    host = settings.gateway.advertise or asked_host or "127.0.0.1"
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    scheme = "https" if settings.gateway.certificate else "http"
    return f"{scheme}://{shown}:{backend.port}"


def incident(one: Incident) -> dict[str, object]:
    """An incident as the API shows it."""
    return {
        "id": one.id,
        "event": one.event.value,
        "severity": one.severity.value,
        "opened_at": iso(one.opened_at),
        "closed_at": None if one.closed_at is None else iso(one.closed_at),
        "backend": one.backend,
        "gpu": one.gpu,
        "summary": one.summary,
        "evidence": {"pids": list(one.pids), **dict(one.evidence)},
        "actions": [
            {
                "id": action.id,
                "action": action.action,
                "target": action.target,
                "reason": action.reason,
                "started_at": iso(action.started_at),
                "took_ms": action.took_ms,
                "bytes_expected": action.bytes_expected,
                "bytes_freed": action.bytes_freed,
                "outcome": action.outcome,
            }
            for action in one.actions
        ],
    }


def open_incidents(published: Published) -> list[Incident]:
    """Those that are not closed yet."""
    return [one for one in published.decision.incidents if one.closed_at is None]
