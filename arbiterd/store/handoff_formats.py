"""Formats of carry.json, each step from one to the next. Pure: JSON in, JSON out.

A step names classes and fields as they were then, never as the code has them now: it stays right when
records change. A change of core's records that needs more than a default for a new field is a new format
and a step.

1  0.2.0 and the versions before: fields without the names of their classes. 0.2.0 told why a backend
   drains by its sentence alone.
2  values as in traces, with the names of their classes (trace/codec.py).
3  without the time at which a device's band began, which nobody read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from arbiterd.trace.codec import classes

Json: TypeAlias = Any
FORMAT = 3

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


# -- all of them -------------------------------------------------------------------------------------
_STEPS: dict[int, Callable[[Json], Json]] = {1: _names, 2: _no_band_time}


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
