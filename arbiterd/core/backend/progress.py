"""Progress of a memory event (a start, a model load): output, CPU time, I/O or memory.

A memory event holds up its neighbours on a device. One that makes no progress for HUNG_AFTER_S is
hung: it keeps its bytes booked and its own deadline, and neighbours that fit beside those bytes go on.
"""

from __future__ import annotations

from arbiterd.core.backend.backend_axes import Effort
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import (
    HUNG_AFTER_S,
    PROGRESS_CPU_S,
    PROGRESS_IO_BYTES,
    PROGRESS_MEMORY_BYTES,
    PROGRESS_UNSEEN_S,
)
from arbiterd.core.memory.ledger import used_of
from arbiterd.core.notes import Notes
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Severity
from arbiterd.quantities import format_duration

_SAMPLE_S = 1.0


def busy_with(facts: Facts, backend: BackendState) -> str:
    """The memory event whose progress counts, as 'is starting', "" for none."""
    if backend.phase is Phase.STARTING:
        return "is starting"
    leased = any(one.backend == backend.name for one in facts.leases.values())
    return "is loading a model" if backend.warm.pending or leased else ""


def note(facts: Facts) -> tuple[Facts, Notes]:
    """Sample every backend that is busy with a memory event; say when one hangs and when it goes on."""
    notes: Notes = ()
    for backend in facts.backends.values():
        what = busy_with(facts, backend)
        sampled = _sampled(facts, backend) if what else None
        if sampled is not backend.effort:
            new = backend.having(effort=sampled)
            notes = (*notes, *_said(facts, new, backend.effort, what))
            facts = facts.put(new)
    return facts, notes


def moved(backend: BackendState, now: float) -> bool:
    """Whether this tick's sample shows progress."""
    return backend.effort is not None and backend.effort.moved_at == now


def why_hung(backend: BackendState) -> str:
    """Why its memory event counts as hung, "" while it does not."""
    if backend.effort is None or not backend.effort.hung:
        return ""
    return f"hung: no output, CPU time, I/O or new memory for {format_duration(HUNG_AFTER_S)}"


def _sampled(facts: Facts, backend: BackendState) -> Effort:
    """The next sample, at most one a second; the old one in between."""
    old, now, unit = backend.effort, facts.seen.now, facts.unit(backend.name)
    if old is not None and now - old.at < _SAMPLE_S:
        return old
    memory = unit.memory_bytes + sum(
        used_of(rows, backend.name) or 0 for rows in facts.ledgers.values()
    )
    if old is None:
        return Effort(now, now, unit.cpu_s, unit.log_bytes, unit.io_bytes, memory)
    elapsed = now - old.at
    moves = (
        unit.cpu_s - old.cpu_s >= PROGRESS_CPU_S * elapsed
        or unit.log_bytes != old.log_bytes
        or unit.io_bytes - old.io_bytes >= PROGRESS_IO_BYTES * elapsed
        or memory - old.memory_bytes >= PROGRESS_MEMORY_BYTES
    )
    # What nobody looked at is no evidence: the daemon itself may have been stopped.
    unseen = elapsed if elapsed >= PROGRESS_UNSEEN_S else 0.0
    moved_at = now if moves else old.moved_at + unseen
    return Effort(
        at=now,
        moved_at=moved_at,
        cpu_s=unit.cpu_s,
        log_bytes=unit.log_bytes,
        io_bytes=unit.io_bytes,
        # Small steps add up; bytes given back and taken again are none.
        memory_bytes=max(memory, old.memory_bytes) if moves else old.memory_bytes,
        hung=now - moved_at >= HUNG_AFTER_S,
    )


def _said(facts: Facts, backend: BackendState, old: Effort | None, what: str) -> Notes:
    if old is None or backend.effort is None or old.hung == backend.effort.hung:
        return ()
    if not backend.effort.hung:
        text = f"{backend.name} {what}: it makes progress again"
        return (facts.say(EventName.RECOVERED, Severity.NOTICE, text, backend.name),)
    text = (
        f"{backend.name} {what}: {why_hung(backend)}; "
        "other backends that fit beside its booked memory may start"
    )
    return (facts.say(EventName.STUCK, Severity.WARNING, text, backend.name),)
