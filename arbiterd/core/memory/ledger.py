"""The ledger: who holds which bytes of a device. Its used rows add up to NVML's used, every tick.

What NVML counts and no listed process explains is the row 'unattributed'. It may be slightly
negative: memory and process lists are separate NVML calls without a common snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.model.backend import LedgerRow, Phase, Placement
from arbiterd.model.devices import DeviceObservation
from arbiterd.model.reading import Known

HEADROOM = "headroom"
FOREIGN = "foreign"
UNATTRIBUTED = "unattributed"

# A failed backend's bytes stay booked too: it is brought back by a half-open probe or an operator.
_NOT_BOOKED = (Phase.STOPPED,)


def rows(
    device: DeviceObservation,
    placements: Mapping[str, Placement],
    backends: Mapping[str, BackendState],
    headroom_setting: int | None,
) -> tuple[LedgerRow, ...]:
    """Rows of one device: every placed backend, any other holder, headroom, foreign, unattributed."""
    uuid = device.device.uuid
    used: dict[str, int] = {}
    pids: dict[str, list[int]] = {}
    if isinstance(device.processes, Known):
        for process in device.processes.value:
            holder = process.holder or FOREIGN
            size = process.used_bytes.value if isinstance(process.used_bytes, Known) else 0
            used[holder] = used.get(holder, 0) + size
            pids.setdefault(holder, []).append(process.pid)
    placed = [name for name, where in placements.items() if uuid in where.devices]
    others = sorted(set(used) - set(placed) - {FOREIGN})
    known = isinstance(device.processes, Known)
    out: list[LedgerRow] = []
    for name in (*placed, *others):
        cap = placements[name].cap_bytes if name in placed else 0
        held = used.get(name, 0)
        phase = backends[name].phase if name in backends else Phase.STOPPED
        out.append(
            LedgerRow(
                holder=name,
                cap_bytes=cap,
                booked_bytes=held if phase in _NOT_BOOKED else max(cap, held),
                used_bytes=held if known else None,
                pids=tuple(pids.get(name, ())),
            )
        )
    out.append(LedgerRow(HEADROOM, cap_bytes=headroom_bytes(headroom_setting, device.device)))
    foreign = used.get(FOREIGN, 0) if known else None
    out.append(LedgerRow(FOREIGN, used_bytes=foreign, pids=tuple(pids.get(FOREIGN, ()))))
    rest = None
    if isinstance(device.memory, Known):
        rest = device.memory.value.used_bytes - sum(used.values())
    out.append(LedgerRow(UNATTRIBUTED, used_bytes=rest))
    return tuple(out)


def used_of(ledger: tuple[LedgerRow, ...], holder: str) -> int | None:
    """Used bytes of one holder, None when not known or not listed."""
    return next((row.used_bytes for row in ledger if row.holder == holder), None)
