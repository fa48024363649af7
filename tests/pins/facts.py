"""What a decision says, as lines of typed facts: no sentence, no id, nothing of core's State.

A fact that lasts (a backend's phase, a door's limit) holds from tick to tick; one that does not (an action,
an event, the answer to a load) belongs to its tick alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from arbiterd.model.actions import (
    Action,
    FreezeBackend,
    KillProcesses,
    LoadModel,
    MakeNodes,
    SleepBackend,
    StartBackend,
    StopBackend,
    UnloadModel,
    WakeBackend,
)
from arbiterd.model.backend import BackendView, DeviceView
from arbiterd.model.decision import Decision
from arbiterd.model.events import Event


class Names:
    """Cards by their number, as the facts name them."""

    def __init__(self) -> None:
        self._cards: dict[str, str] = {}

    def card(self, uuid: str) -> str:
        """'gpu0' for the first that was ever named; '' stays ''."""
        return self._cards.setdefault(uuid, f"gpu{len(self._cards)}") if uuid else ""


def _line(*words: object, **fields: object) -> str:
    told = [
        f"{name}={_text(value)}" for name, value in fields.items() if value not in (None, "", ())
    ]
    return " ".join([str(word) for word in words if word != ""] + told)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return "[" + " ".join(_text(one) for one in value) + "]"
    return str(value)


# -- of one tick -----------------------------------------------------------------------------------
def once(decision: Decision, names: Names) -> frozenset[str]:
    """Actions, events, answers to loads, the way back to another layout."""
    found = {_action(one, names) for one in decision.actions}
    found |= {_event(one, names) for one in decision.events}
    found |= {
        _line(
            "! answer",
            one.id,
            one.verdict.value,
            lease_s=one.lease_s or None,
            retry_s=one.retry_after_s,
        )
        for one in decision.loads
    }
    if decision.back_to is not None:
        found.add(_line("! back to", decision.back_to.mode))
    return frozenset(found)


def _action(one: Action, names: Names) -> str:
    what = ("! do", type(one).__name__, one.backend, names.card(one.gpu))
    match one:
        case StartBackend():
            env = tuple(f"{key}={value}" for key, value in sorted(one.spec.env.items()))
            return _line(*what, argv=one.spec.argv, env=env, grace_s=one.spec.stop_grace_s)
        case StopBackend():
            return _line(*what, grace_s=one.grace_s)
        case KillProcesses():
            return _line(*what, pids=tuple(sorted(ref.pid for ref in one.processes)))
        case LoadModel():
            return _line(*what, model=one.model, keep_s=one.keep_alive_s, timeout_s=one.timeout_s)
        case UnloadModel():
            return _line(*what, model=one.model, paths=tuple(probe.path for probe in one.requests))
        case SleepBackend() | WakeBackend():
            return _line(*what, paths=tuple(probe.path for probe in one.requests))
        case FreezeBackend():
            return _line(*what, for_s=one.for_s)
        case MakeNodes():
            return _line(*what, nodes=one.nodes)
        case _:
            return _line(*what)


def _event(one: Event, names: Names) -> str:
    what = ("! say", one.name.value, one.severity.value, one.backend, names.card(one.gpu))
    return _line(*what, kind=one.kind, expected=one.bytes_expected, freed=one.bytes_freed)


# -- that last -------------------------------------------------------------------------------------
def lasting(decision: Decision, names: Names) -> frozenset[str]:
    """Phases, placements, doors, bands, brakes, reclaims, open incidents, switches, learned caps, probes."""
    return frozenset(
        (
            *_backends(decision.backends, names),
            *_doors(decision),
            *_devices(decision.devices, names),
            *_incidents(decision, names),
            *_switches(decision),
            *_rest(decision, names),
        )
    )


def _backends(views: Mapping[str, BackendView], names: Names) -> Iterator[str]:
    for name, one in views.items():
        yield _line("backend", name, phase=one.phase.value, accepting=one.accepting)
        devices = tuple(names.card(uuid) for uuid in one.devices)
        yield _line("place", name, on=devices, cap=one.cap_bytes, learned=one.learned_bytes or None)
        yield _line("past", name, restarts=one.restarts, degraded=bool(one.degraded))
        if one.throttled is not None:
            yield _line("throttled", name, limit=one.throttled)


def _doors(decision: Decision) -> Iterator[str]:
    for name, one in decision.gateway.backends.items():
        yield _line(
            "door",
            name,
            one.admit.value,
            accepting=one.accepting,
            limit=one.max_in_flight,
            queue=one.max_queue,
        )
        yield _line(
            "retry",
            name,
            shed_s=one.retry_after_s,
            full_s=one.full_retry_after_s,
            advice=one.advice,
        )
    for (name, model), other in decision.gateway.failover.items():
        yield _line("failover", name, model, to=other)
    for model, name in decision.gateway.adapters.items():
        yield _line("adapter", model, of=name)


def _devices(views: Mapping[str, DeviceView], names: Names) -> Iterator[str]:
    for uuid, view in views.items():
        card = names.card(uuid)
        yield _line("band", card, view.pressure.value)
        detail = view.detail
        if detail is None:
            continue
        if detail.reclaim is not None:
            one = detail.reclaim
            yield _line("reclaim", card, one.rung.value, one.backend, expected=one.bytes_expected)
        for name, brake in detail.brakes.items():
            yield _line(
                "brake", card, name, holds=bool(brake.hold), limit=brake.limit, frozen=brake.frozen
            )
        for candidate in detail.candidates:
            if candidate.chosen:
                yield _line("chosen", card, candidate.rung.value, candidate.backend)
        if detail.loads_held:
            yield _line("loads held", card)
        if detail.fault:
            yield _line("fault", card)
        if detail.disruptive:
            yield _line("disruptive", card, f"{detail.disruptive} of {detail.disruptive_max}")


def _incidents(decision: Decision, names: Names) -> Iterator[str]:
    for one in decision.incidents:
        if one.closed_at is None:
            yield _line(
                "open", one.event.value, one.severity.value, one.backend, names.card(one.gpu)
            )


def _switches(decision: Decision) -> Iterator[str]:
    one, last = decision.switch, decision.last_switch
    if one is not None:
        yield _line(
            "switch", one.from_mode, one.to_mode, back=bool(one.rolling_back), queued=one.queued
        )
        for step in one.steps:
            yield _line("step", step.backend, step.change.value, done=step.done)
    if last is not None:
        yield _line("last switch", last.from_mode, last.to_mode, last.outcome.value)


def _rest(decision: Decision, names: Names) -> Iterator[str]:
    for one in decision.learned.values():
        yield _line(
            "learned",
            one.mode,
            one.backend,
            names.card(one.gpu),
            one.model,
            lowered=one.lowered_bytes,
            ooms=one.ooms,
        )
    for order in decision.probes:
        yield _line(
            "probe", order.backend, fast=order.fast, canary=order.canary_due, trial=order.trial
        )
    yield _line(
        "whole", blind=decision.blind, settled=decision.settled, lists_soon=decision.lists_soon
    )
