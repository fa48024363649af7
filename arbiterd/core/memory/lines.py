"""A backend's line: what it holds five minutes after ready with requests served. CUDA graphs and contexts
lie outside an engine's own budget, and a restart brings them back: up to a bound they are its footprint,
not a leak. They are always counted in the ledger and in solvency.
"""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import LINE_AFTER_S, LINE_FRACTION, LINE_MIN_BYTES
from arbiterd.core.memory import pressure
from arbiterd.core.traffic.evidence import traffic


def drawn(facts: Facts, backend: BackendState) -> BackendState:
    """With its line, once that is known. A backend that grows has none yet."""
    placement = facts.placements.get(backend.name)
    if (
        backend.run.line
        or backend.run.ready_at is None
        or placement is None
        or not placement.devices
    ):
        return backend
    if facts.seen.now - backend.run.ready_at < LINE_AFTER_S or not _served(facts, backend.name):
        return backend
    line = {}
    for uuid in placement.devices:
        state = facts.device(uuid)
        held = state.sampled.used.get(backend.name)
        if state.sampled.seen_at < 0 or held is None or pressure.grows(state, backend.name):
            return backend
        line[uuid] = min(held, placement.cap_bytes + forgiven(placement.cap_bytes))
    return backend.having(run=backend.run.outlines(line))


def forgiven(cap: int) -> int:
    """Bytes beyond the cap that may be footprint: max(1 GiB, 10 %)."""
    return max(LINE_MIN_BYTES, int(cap * LINE_FRACTION))


def on(backends: Mapping[str, BackendState], uuid: str) -> dict[str, int]:
    """The lines on one device, by backend."""
    return {one.name: one.run.line[uuid] for one in backends.values() if uuid in one.run.line}


def _served(facts: Facts, name: str) -> bool:
    """It has answered requests, or nobody counts them."""
    seen = traffic(facts, name)
    return seen is None or sum(seen.responses.values()) > 0
