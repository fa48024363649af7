"""A backend as core sees and publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from arbiterd.model.devices import Pressure
from arbiterd.model.pressure import PressureView


class Phase(StrEnum):
    """Phase of a backend (contract, section 3)."""

    STOPPED = "stopped"
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a backend lives and how much it may hold.

    ``devices``: uuids ((): CPU only). ``cap_bytes``: per device, context and spikes included; 0 on
    the CPU. ``wrong``: why it cannot be placed now (a GPU that is not there), else ""; ``right``: what
    would mend it.
    """

    backend: str
    devices: tuple[str, ...]
    cap_bytes: int
    wrong: str = ""
    right: str = ""

    @property
    def problem(self) -> str:
        """Both in one sentence."""
        return f"{self.wrong}; {self.right}" if self.right else self.wrong


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One holder of a device. Kinds: a backend's name, 'headroom', 'foreign', 'unattributed'.

    ``booked_bytes``: what nobody else may count on: the cap while it lives or is being brought back.
    """

    holder: str
    cap_bytes: int | None = None
    booked_bytes: int | None = None
    used_bytes: int | None = None
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as published: pressure and the ledger; used rows add up to memory.used."""

    uuid: str
    pressure: Pressure
    rows: tuple[LedgerRow, ...]
    time_to_full_s: float | None = None
    detail: PressureView | None = None


@dataclass(frozen=True, slots=True)
class BackendView:
    """A backend as published. ``since`` is wall time (epoch seconds) of the last phase change.
    ``used_bytes``: None when one of its devices cannot be read (lost, hung), never 0 for that.
    ``intent``: digest of what it was started with, "" when it never was (core/mode/intent.py).
    ``canaries``: of engines that try them, why a model has none, "" where it has one. ``drained``: by an
    operator, until resume.
    """

    name: str
    kind: str
    phase: Phase
    accepting: bool
    reason: str
    retry_after_s: int
    since: float
    devices: tuple[str, ...]
    cap_bytes: int
    used_bytes: int | None
    pids: tuple[int, ...]
    restarts: int
    in_flight: int
    queued: int
    degraded: str = ""
    priority: int = 0
    learned_bytes: int = 0
    throttled: int | None = None
    intent: str = ""
    canaries: Mapping[str, str] = field(default_factory=dict)
    start_took_s: float | None = None
    stop_took_s: float | None = None
    drained: bool = False
