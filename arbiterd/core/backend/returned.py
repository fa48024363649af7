"""A card that was lost and is back: what a ready engine held on it must still be there.

A reset ends every CUDA context on a card, and not every engine ends with it: one that answers its health
URL and holds nothing any more serves errors, or computes on the CPU.
"""

from __future__ import annotations

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import FRESH_SAMPLES, GROWING_BYTES
from arbiterd.core.memory.ledger import used_of
from arbiterd.engines import engine_of
from arbiterd.model.devices import GpuState
from arbiterd.model.reading import Known
from arbiterd.quantities import format_size


def look(facts: Facts, backend: BackendState) -> tuple[BackendState, str]:
    """(the backend with what it held on lost cards, why its context is gone or "").

    Called before ``Run.held`` is renewed: that of a lost card is the last that was seen.
    """
    missed = dict(backend.run.missed)
    for uuid, held in backend.run.held.items():
        seen = facts.seen.devices.get(uuid)
        if seen is not None and seen.state is GpuState.LOST and held >= GROWING_BYTES:
            missed.setdefault(uuid, held)
    for uuid, held in list(missed.items()):
        seen = facts.seen.devices.get(uuid)
        fresh = facts.device(uuid).sampled.count >= FRESH_SAMPLES
        if seen is None or seen.state is not GpuState.OK or not fresh:
            continue
        used = used_of(facts.ledgers.get(uuid, ()), backend.name)
        if used is None:
            continue
        del missed[uuid]
        if used == 0 and not _unloaded(facts, backend.name):
            why = (
                f"GPU {seen.device.index} was lost and is back, and of the {format_size(held)} that it "
                "held there nothing is left: its CUDA context is gone"
            )
            return backend.having(run=backend.run.missing(missed)), why
    return backend.having(run=backend.run.missing(missed)), ""


def _unloaded(facts: Facts, name: str) -> bool:
    """It says itself that it has no model resident: it needs no context."""
    wanted, health = facts.wanted(name), facts.seen.health.get(name)
    if wanted is None or not engine_of(wanted.kind).warm_model(wanted):
        return False
    return health is not None and isinstance(health.loaded, Known) and not health.loaded.value
