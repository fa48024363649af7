"""HAProxy's processes."""

from __future__ import annotations

from arbiterd import procfs
from arbiterd.model.devices import ProcessRef


def family(worker: int) -> tuple[ProcessRef, ...]:
    """A worker and its master, as far as they live: a reload ends the one and not the other, and on a busy
    machine it may take seconds until the next worker is there.
    """
    found = procfs.stat(worker)
    pids = (worker, found.parent) if found is not None and found.parent > 1 else (worker,)
    return tuple(ref for pid in pids if (ref := procfs.ref(pid)) is not None)
