"""GET /openapi.json: the schema of the read-only API. Tests hold real answers against it."""

from __future__ import annotations

from typing import Any

from arbiterd import __version__
from arbiterd.model.backend import Phase
from arbiterd.model.devices import GpuState, Pressure
from arbiterd.model.pressure import Rung
from arbiterd.model.switch import Change, Ended

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_BYTES: Schema = {"type": "integer", "description": "bytes"}
_NUMBER: Schema = {"type": "number"}
_BOOL: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_PIDS: Schema = {"type": "array", "items": {"type": "integer"}}


def _maybe(schema: Schema) -> Schema:
    kind = schema["type"]
    return {**schema, "type": [kind, "null"]}


def _list(of: str | Schema) -> Schema:
    return {"type": "array", "items": _ref(of) if isinstance(of, str) else of}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(name: str) -> Schema:
    return {"anyOf": [_ref(name), {"type": "null"}]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _enum(values: type[Phase | GpuState | Pressure | Rung | Change | Ended]) -> Schema:
    return {"type": "string", "enum": [one.value for one in values]}


def _switch() -> Schema:
    """A switch under way."""
    step = _object(backend=_TEXT, change=_enum(Change), done=_BOOL, doing=_TEXT)
    return _object(
        **{"from": _TEXT},
        to=_TEXT,
        began=_TIME,
        estimated_s=_NUMBER,
        left_s=_NUMBER,
        steps=_list(step),
        rolling_back=_TEXT,
        queued=_TEXT,
        line=_TEXT,
    )


def _switch_result() -> Schema:
    """What came of the last reload."""
    return _object(
        **{"from": _TEXT},
        to=_TEXT,
        loaded_at=_TIME,
        ended=_TIME,
        took_s=_NUMBER,
        outcome=_enum(Ended),
        reason=_TEXT,
    )


def _schemas() -> Schema:
    row = _object(holder=_TEXT)
    row["properties"] |= {"cap": _BYTES, "booked": _BYTES, "used": _maybe(_BYTES), "pids": _PIDS}
    action = _object(
        id=_TEXT,
        action=_TEXT,
        target=_TEXT,
        reason=_TEXT,
        started_at=_TIME,
        took_ms=_maybe(_NUMBER),
        bytes_expected=_maybe(_BYTES),
        bytes_freed=_maybe(_BYTES),
        outcome=_TEXT,
    )
    return {
        "Error": _object(error=_object(code=_TEXT, message=_TEXT)),
        "LedgerRow": row,
        "Gpu": _object(
            uuid=_TEXT,
            index={"type": "integer"},
            name=_TEXT,
            state=_enum(GpuState),
            memory=_object(total=_BYTES, reserved=_BYTES, used=_maybe(_BYTES), free=_maybe(_BYTES)),
            pressure=_enum(Pressure),
            time_to_full_s=_maybe(_NUMBER),
            ledger=_list("LedgerRow"),
            ladder=_or_null("Ladder"),
        ),
        **_ladder(),
        "Backend": _object(
            name=_TEXT,
            kind=_TEXT,
            phase=_enum(Phase),
            accepting=_BOOL,
            reason=_TEXT,
            retry_after_s={"type": "integer"},
            since=_TIME,
            gpu=_list(_TEXT),
            cap_bytes=_BYTES,
            learned_bytes={**_BYTES, "description": "taken off its configured cap after OOMs"},
            used_bytes=_maybe(_BYTES),
            pids=_PIDS,
            restarts={"type": "integer"},
            intent=_TEXT,
            start_took_s=_maybe(_NUMBER),
            stop_took_s=_maybe(_NUMBER),
            drained=_BOOL,
            in_flight={"type": "integer"},
            queued={"type": "integer"},
            throttled=_maybe({"type": "integer", "description": "requests in flight allowed now"}),
            canaries={
                "type": "object",
                "description": "TensorFlow: by model, 'kept' or why it has no canary",
                "additionalProperties": _TEXT,
            },
            braked=_TEXT,
            url=_maybe(_TEXT),
            health=_object(ok=_maybe(_BOOL), latency_ms=_maybe(_NUMBER), age_s=_maybe(_NUMBER)),
        ),
        "Action": action,
        "Incident": _object(
            id=_TEXT,
            event=_TEXT,
            severity=_TEXT,
            opened_at=_TIME,
            closed_at=_maybe(_TIME),
            backend=_TEXT,
            gpu=_TEXT,
            summary=_TEXT,
            evidence=_object(pids=_PIDS),
            actions=_list("Action"),
        ),
        "Status": _object(
            version=_TEXT,
            mode=_TEXT,
            sharing={"type": "string", "enum": ["shared", "partitioned"]},
            dry_run=_BOOL,
            config=_object(path=_TEXT, sha256=_TEXT, loaded_at=_TIME, mode_from_env=_BOOL),
            switch=_maybe(_switch()),
            times={
                "type": "object",
                "additionalProperties": _object(start_s=_maybe(_NUMBER), stop_s=_maybe(_NUMBER)),
            },
            last_switch=_maybe(_switch_result()),
            loop=_object(
                tick={"type": "integer"},
                period_ms={"type": "integer"},
                last_tick_ms=_NUMBER,
                stalls={"type": "integer"},
                stalled_s=_NUMBER,
                late_s=_NUMBER,
                missed={"type": "integer"},
                blind=_BOOL,
            ),
            gpus=_list("Gpu"),
            backends=_list("Backend"),
            incidents_open=_list("Incident"),
        ),
        "Ready": _object(
            backend=_TEXT,
            accepting=_BOOL,
            phase=_enum(Phase),
            reason=_TEXT,
            retry_after_s={"type": "integer"},
        ),
        "Route": _object(backend=_TEXT, url=_TEXT, model=_TEXT, reason=_TEXT, advice=_TEXT),
        "Ok": _object(ok=_BOOL),
    }


def _ladder() -> Schema:
    """Pressure, who could give memory back, what is done; and what OOMs have taught."""
    rung, speed = _enum(Rung), {"type": "number", "description": "bytes a second"}
    holder = _object(name=_TEXT, over_bytes=_BYTES, slope_bytes_per_s=_maybe(speed), growing=_BOOL)
    candidate = _object(backend=_TEXT, rung=rung, bytes_expected=_BYTES, chosen=_BOOL, reason=_TEXT)
    reclaim = _object(
        rung=rung,
        target=_TEXT,
        reason=_TEXT,
        began=_TIME,
        bytes_expected=_BYTES,
        bytes_freed=_BYTES,
        stage=_TEXT,
        incident=_TEXT,
        text=_TEXT,
    )
    ladder = _object(
        reason=_TEXT,
        why=_list(_TEXT),
        solvency_bytes=_maybe(_BYTES),
        capacity_bytes=_BYTES,
        granted_bytes=_maybe(_BYTES),
        foreign_over_bytes=_maybe(_BYTES),
        unattributed_bytes=_maybe(_BYTES),
        releasing_bytes=_BYTES,
        free_bytes=_maybe(_BYTES),
        tight_below=_BYTES,
        calm_above=_BYTES,
        critical_below=_BYTES,
        excess_bytes=_BYTES,
        slope_bytes_per_s=_maybe(speed),
        time_to_full_s=_maybe(_NUMBER),
        lead_s=_NUMBER,
        holders=_list(holder),
        candidates=_list(candidate),
        reclaim=_or_null("Reclaim"),
        braked={"type": "object", "additionalProperties": _TEXT},
        loads_held=_TEXT,
        disruptive={"type": "integer"},
        disruptive_max={"type": "integer"},
        fault=_TEXT,
    )
    cap = _object(
        mode=_TEXT,
        backend=_TEXT,
        gpu=_TEXT,
        index=_maybe({"type": "integer"}),
        model=_TEXT,
        version=_TEXT,
        configured_bytes=_maybe(_BYTES),
        lowered_bytes=_BYTES,
        cap_bytes=_maybe(_BYTES),
        on_cpu=_BOOL,
        ooms={"type": "integer"},
        at=_TIME,
        reason=_TEXT,
        applies=_BOOL,
    )
    return {"Ladder": ladder, "Reclaim": reclaim, "Cap": cap}


def _reply(schema: Schema, text: str = "done") -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str, schema: Schema, *errors: int, query: tuple[str, ...] = (), name: bool = False
) -> Schema:
    parameters: list[Schema] = [
        {"name": one, "in": "query", "required": False, "schema": _TEXT} for one in query
    ]
    if name:
        parameters.append({"name": "name", "in": "path", "required": True, "schema": _TEXT})
    replies: Schema = {"200": _reply(schema)}
    for status in errors:
        body = _ref("Ready") if status == 503 and schema == _ref("Ready") else _ref("Error")
        replies[str(status)] = _reply(body, "see error.message")
    return {"get": {"summary": summary, "parameters": parameters, "responses": replies}}


def document() -> Schema:
    """OpenAPI 3.1."""
    plain: Schema = {"type": "string"}
    metrics = _operation("Prometheus metrics", plain)
    metrics["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": plain}}
    page = _object(status=_ref("Status"), incidents=_list("Incident"), caps=_list("Cap"))
    stream = _operation("What the page shows, a line each second", page, 429)
    reply = stream["get"]["responses"]["200"]
    reply["content"] = {"application/x-ndjson": reply["content"].pop("application/json")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpu-arbiter status API",
            "version": __version__,
            "description": "Read only. Changes go through the unix socket admin.sock.",
        },
        "paths": {
            "/livez": _operation("The control loop finishes its ticks", _ref("Ok"), 503),
            "/readyz": _operation("At least one backend accepts", _ref("Ok"), 503),
            "/v1/status": _operation("Everything", _ref("Status")),
            "/v1/gpus": _operation("GPUs with their ledgers", _object(gpus=_list("Gpu"))),
            "/v1/backends": _operation("Backends", _object(backends=_list("Backend"))),
            "/v1/backends/{name}": _operation("A backend", _ref("Backend"), 404, name=True),
            "/v1/backends/{name}/ready": _operation(
                "May work be sent there", _ref("Ready"), 404, 503, name=True
            ),
            "/v1/route": _operation(
                "Where to send a request now",
                _ref("Route"),
                404,
                422,
                503,
                query=("model", "backend"),
            ),
            "/v1/incidents": _operation(
                "Incidents, newest first",
                _object(incidents=_list("Incident")),
                422,
                query=("limit", "since", "backend"),
            ),
            "/v1/caps": _operation("Caps that OOMs have lowered", _object(caps=_list("Cap"))),
            "/v1/stream": stream,
            "/metrics": metrics,
        },
        "components": {"schemas": _schemas()},
    }
