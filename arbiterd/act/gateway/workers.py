"""HAProxy's processes."""

from __future__ import annotations

from arbiterd.gateway import runtime
from arbiterd.gateway.paths import Paths
from arbiterd.linux import procfs
from arbiterd.model.devices import ProcessRef


def family(worker: int) -> tuple[ProcessRef, ...]:
    """A worker and its master, as far as they live: a reload ends the one and not the other, and on a busy
    machine it may take seconds until the next worker is there.
    """
    found = procfs.stat(worker)
    pids = (worker, found.parent) if found is not None and found.parent > 1 else (worker,)
    return tuple(ref for pid in pids if (ref := procfs.ref(pid)) is not None)


def open_doors(where: Paths) -> frozenset[str]:
    """Doors that our own HAProxy has open; none while it does not answer."""
    try:
        rows = runtime.look(where.runtime, where.live).rows
    except runtime.GatewayGone:
        return frozenset()
    names = (r.proxy for r in rows if r.name == "FRONTEND" and r.proxy.startswith("door-"))
    return frozenset(name.removeprefix("door-") for name in names)
