"""Evidence from traffic, joined with the engine's own counters.

An engine's gauges may lie (vllm #46811: running said 0 while requests hung), and Ollama has none.
What the gateway counts is true of every engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arbiterd.core.facts import Facts
from arbiterd.core.limits import DOOR_CLOSES_S
from arbiterd.core.memory.gate import loading
from arbiterd.engines import engine_of
from arbiterd.model.gateway import Traffic
from arbiterd.model.health import Progress
from arbiterd.model.reading import Known


def traffic(facts: Facts, name: str) -> Traffic | None:
    """Its counters at the gateway, None when they are not known."""
    found = facts.seen.gateway.traffic.get(name)
    return found.value if isinstance(found, Known) else None


def progress(facts: Facts, name: str) -> Progress | None:
    """Requests outstanding, and a sum that moves only while work is done. None: nobody counts.

    Without counters of its own an engine's work is what it answers, and the CPU time of its
    processes: a long prefill sends no byte but keeps a core busy, a deadlock does neither. While it
    loads a model nothing is outstanding: a load is no work and may take minutes.
    """
    health, seen = facts.seen.health.get(name), traffic(facts, name)
    own = health.progress.value if health and isinstance(health.progress, Known) else None
    if seen is None:
        return own
    if own is not None:
        return Progress(max(own.running, seen.in_flight), own.waiting, own.work)
    backend = facts.backends.get(name)
    if loading(facts, name) or (backend and backend.warm.pending):
        return Progress(0, 0, float(seen.requests))
    answered = sum(seen.responses.values())
    cpu = int(facts.unit(name).cpu_s * 2)  # half seconds: an idle process does not come so far
    return Progress(seen.in_flight, 0, float(answered + seen.bytes_out + cpu))


@dataclass(frozen=True, slots=True)
class Answers:
    """What a door counts of one backend: requests at it now, let in and answered so far."""

    in_flight: int
    let_in: int
    answered: int


def answers(facts: Facts, name: str) -> Answers | None:
    """Counted at its doors; None when nobody counts. HAProxy's own 504 is no answer of an engine."""
    seen = traffic(facts, name)
    if seen is None:
        return None
    return Answers(seen.in_flight, seen.requests, sum(seen.responses.values()))


def pool_refusals(facts: Facts, names: Sequence[str]) -> int:
    """Answers 429 since the last tick of engines whose own pool is full (TensorFlow Serving says so,
    and stays up): less load helps, a lower cap would not.
    """
    count = 0
    for name in names:
        wanted = facts.wanted(name)
        if wanted is not None and engine_of(wanted.kind).refuses_when_full:
            new = facts.codes_429(name)
            count += max(0, new - facts.before.refusals.get(name, new))
    return count


def refusals(facts: Facts) -> dict[str, int]:
    """The counts that the next tick compares with."""
    names = (*facts.settings.active.backends, *facts.seen.gateway.requests)
    # Zeros as well: the very first answer may be a 429.
    return {name: facts.codes_429(name) for name in names}


def outstanding(facts: Facts, name: str) -> tuple[int, int]:
    """(in flight, queued), the engine's own queue and the door's."""
    found, seen = progress(facts, name), traffic(facts, name)
    running = max(found.running if found else 0, seen.in_flight if seen else 0)
    waiting = (found.waiting if found else 0) + (seen.queued if seen else 0)
    return running, waiting


def busy(facts: Facts, name: str, drained_since: float) -> bool:
    """Whether a backend that is drained since then still has requests of its own to end.

    What waits at its closed door will not reach it any more and is none of them. Counts taken while
    the door was still closing prove nothing.
    """
    found = facts.seen.gateway.traffic.get(name)
    if isinstance(found, Known) and found.at < drained_since + DOOR_CLOSES_S:
        return True
    health = facts.seen.health.get(name)
    counted = health.progress if health else None
    if found is None and isinstance(counted, Known) and counted.at < drained_since:
        return True  # without a door the engine's own count is all there is
    if not facts.seen.gateway.looked:
        return True  # the first ticks of a daemon: that nobody was asked yet is no sign of an idle engine
    own, seen = progress(facts, name), traffic(facts, name)
    running = max(own.running if own else 0, seen.in_flight if seen else 0)
    return bool(running + (own.waiting if own else 0))
