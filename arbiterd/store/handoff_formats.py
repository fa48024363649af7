"""Formats of carry.json, each step from one to the next. Pure: JSON in, JSON out.

A step names classes and fields as they were then, never as the code has them now: it stays right when
records change. A change of core's records that needs more than a default for a new field is a new format
and a step.

1  0.2.0 and the versions before: fields without the names of their classes. 0.2.0 told why a backend
   drains by its sentence alone.
2  values as in traces, with the names of their classes (trace/codec.py).
3  without the time at which a device's band began, which nobody read.
4  a backend's and a device's fields by what they are about, in records of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from arbiterd.trace.codec import classes

Json: TypeAlias = Any
FORMAT = 4

# -- 1 to 2 ------------------------------------------------------------------------------------------
# Which class stands in a field; *: in each value of it. What is not a key here is an enumeration.
_KINDS = {
    "Carry": {
        "backends": "*BackendState",
        "devices": "*DeviceState",
        "switch": "Switch",
        "last": "SwitchResult",
    },
    "BackendState": {
        "phase": "Phase",
        "after": "After",
        "drain": "DrainCause",
        "effort": "Effort",
        "cause": "Cause",
        "vitals": "Vitals",
        "sleep": "Sleep",
        "canaries": "Canaries",
    },
    "Cause": {"cause": "CauseClass"},
    "Sleep": {"stage": "SleepStage"},
    "DeviceState": {
        "pressure": "Pressure",
        "reclaim": "Reclaim",
        "braked": "*Braked",
        "candidates": "*Candidate",
    },
    "Reclaim": {"rung": "Rung"},
    "Candidate": {"rung": "Rung", "not_now": "NotNow"},
    "Switch": {"changes": "*Change"},
    "SwitchResult": {"outcome": "Ended"},
    "Effort": {},
    "Vitals": {},
    "Canaries": {},
    "Braked": {},
}
_DRAINS = {
    "drained by an operator": "operator",
    "its configuration changed": "changed",
    "not wanted any more": "unwanted",
    "restart asked by an operator": "restart",
}
# 0.2.0's progress of a start: measured anew.
_RETIRED = ("progress_cpu", "progress_at", "progress_log")


def _names(carry: Json) -> Json:
    for one in carry["backends"].values() if "backends" in carry else ():
        if one.get("phase") == "draining":
            one.setdefault("drain", _DRAINS.get(one.get("reason")))
        for key in _RETIRED:
            one.pop(key, None)
    return _named("Carry", carry)


def _named(kind: str, value: Json) -> Json:
    if value is None:
        return None
    within = _KINDS.get(kind)
    if within is None:
        return {"$": kind, "v": value}
    return {"$": kind, **{key: _field(within.get(key, ""), one) for key, one in value.items()}}


def _field(kind: str, value: Json) -> Json:
    if not kind.startswith("*"):
        return _named(kind, value) if kind else value
    if isinstance(value, Mapping):
        return {key: _named(kind[1:], one) for key, one in value.items()}
    return [_named(kind[1:], one) for one in value]


# -- 2 to 3 ------------------------------------------------------------------------------------------
def _no_band_time(carry: Json) -> Json:
    for one in carry["devices"].values() if "devices" in carry else ():
        one.pop("band_wall", None)
    return carry


# -- 3 to 4 ------------------------------------------------------------------------------------------
# The record that holds a field now, and its name there.
_BACKEND = {
    "held": "wish.drained",
    "parked": "wish.parked",
    "restart_asked": "wish.restart",
    "invocation": "run.invocation",
    "intent": "run.intent",
    "adopted": "run.adopted",
    "started_cap": "run.cap",
    "ready_at": "run.ready_at",
    "held_bytes": "run.held",
    "spare_then": "run.spare_then",
    "missed": "run.missed",
    "gone_at": "run.gone_at",
    "release_slow_said": "run.slow_told",
    "failures": "history.failures",
    "failed_count": "history.count",
    "attempt": "history.attempt",
    "restarts": "history.restarts",
    "not_before": "history.not_before",
    "cause": "history.cause",
    "ooms": "history.ooms",
    "start_took_s": "history.start_took_s",
    "stop_took_s": "history.stop_took_s",
    "warm_done": "warm.done",
    "warm_failures": "warm.failures",
    "warm_not_before": "warm.not_before",
    "warm_pending": "warm.pending",
    "warm_away_until": "warm.away_until",
    "load_ended_at": "warm.load_ended_at",
    "client_load_at": "warm.client_load_at",
    "nodes_asked": "nodes.asked",
    "nodes_asked_at": "nodes.asked_at",
    "nodes_problem": "nodes.problem",
}
_DEVICE = {
    **dict.fromkeys(
        (
            *(
                "pressure",
                "band_since",
                "seen_at",
                "solvency",
                "used",
                "windows",
                "frees",
                "excess",
            ),
            *("slope", "time_to_full_s", "releasing", "releasing_until", "over_since", "alarms"),
            *("alarm_at", "moved_at", "foreign_calm_at"),
        ),
        "sampled",
    ),
    "samples": "sampled.count",
    "last_sample_at": "sampled.last_at",
    **dict.fromkeys(
        (
            *("lead_s", "reclaim", "braked", "loads_held", "disruptive", "restarts", "done"),
            "candidates",
        ),
        "ladder",
    ),
    "fault": "fault.text",
    "fault_code": "fault.code",
    "fault_seen": "fault.seen",
    "fault_cleared": "fault.cleared",
}


def _on_axes(carry: Json) -> Json:
    for key, table in (("backends", _BACKEND), ("devices", _DEVICE)):
        if key in carry:
            carry[key] = {name: _parted(one, table) for name, one in carry[key].items()}
    return carry


def _parted(one: Json, table: Mapping[str, str]) -> Json:
    out: dict[str, Json] = {}
    for key, value in one.items():
        axis, _, name = table.get(key, "").partition(".")
        if axis:
            out.setdefault(axis, {"$": axis.capitalize()})[name or key] = value
        else:
            out[key] = value
    return out


# -- all of them -------------------------------------------------------------------------------------
_STEPS: dict[int, Callable[[Json], Json]] = {1: _names, 2: _no_band_time, 3: _on_axes}


def migrated(carry: Json, written_as: int) -> Json:
    """The document in today's format. One of a later format comes back as it is.

    Raises:
        AttributeError, KeyError, TypeError: it is none of that format.

    """
    for number in range(written_as, FORMAT):
        carry = _STEPS[number](carry)
    return carry


def pruned(value: Json, path: str = "") -> tuple[Json, list[str]]:
    """(the document with the fields that today's classes have, paths of the others: "backends.vllm.x")."""
    if isinstance(value, list):
        rows = [pruned(one, path) for one in value]
        return [one for one, _ in rows], [name for _, names in rows for name in names]
    if not isinstance(value, dict):
        return value, []
    kind = classes().get(value["$"]) if isinstance(value.get("$"), str) else None
    known = {"$", *(one.name for one in fields(kind))} if is_dataclass(kind) else value.keys()
    out, left = {}, [f"{path}{key}" for key in value if key not in known]
    for key, one in value.items():
        if key in known:
            out[key], names = pruned(one, f"{path}{key}.")
            left += names
    return out, left
