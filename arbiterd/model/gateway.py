"""The gateway as core sees it: what shall be let in, what is going on there, who wants to load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from arbiterd.model.reading import Reading


class Admit(StrEnum):
    """What a door does with new requests for a backend.

    UP: let in. AWAY: a model that has a substitute goes there (fail-back waits), the rest is let in.
    HOLD: wait a little, the backend is back within ``queue_timeout``. SHED: 503 + Retry-After.
    """

    UP = "up"
    AWAY = "away"
    HOLD = "hold"
    SHED = "shed"


@dataclass(frozen=True, slots=True)
class BackendWish:
    """What core wants for one backend. Seconds are whole, 1 to 120.

    ``accepting``: what its documented health URLs answer. ``retry_after_s``: told while it is shed;
    ``full_retry_after_s``: told when its queue is full. ``max_in_flight``: over all of its doors.
    ``device_bytes``: what its devices hold together, 0 on the CPU or unknown.
    """

    backend: str
    admit: Admit
    accepting: bool
    why: str
    retry_after_s: int
    full_retry_after_s: int
    max_in_flight: int
    max_queue: int
    advice: str = ""
    version: str = ""
    device_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GatewayWish:
    """The whole of it. ``failover``: (from, model) → the backend that can stand in for it now.
    ``adapters``: model → backend, for names that only the engine itself tells (LoRA at run time); they
    have no substitute.
    """

    backends: Mapping[str, BackendWish] = field(default_factory=dict)
    failover: Mapping[tuple[str, str], str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counters of one backend at the gateway, over all of its doors and over old workers that still
    have streams. Totals grow until HAProxy restarts.

    ``responses``: finished answers by first digit of their status ('2' .. '5'); ``latency_ms``:
    HAProxy's mean over the last 1024 requests. ``engine_up``: HAProxy's checks reach one of
    its ports; ``engine_down``: they do not reach one of them (neither while it is in maintenance).
    """

    in_flight: int = 0
    queued: int = 0
    limit: int = 0
    requests: int = 0
    responses: Mapping[str, int] = field(default_factory=dict)
    bytes_out: int = 0
    connect_errors: int = 0
    latency_ms: float = 0.0
    engine_up: bool = False
    engine_down: bool = False


BUCKETS_S = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
)


@dataclass(frozen=True, slots=True)
class Requests:
    """What the doors' log tells of one backend since the daemon's start. ``codes``: answers by
    status; ``refused``: by reason (shed, full), without reaching the engine. Times in seconds:
    cumulative counts below BUCKETS_S, the last entry is all; ``first_byte`` from the request's
    arrival to the first byte of the answer.
    """

    codes: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    total: tuple[int, ...] = ()
    total_sum_s: float = 0.0
    first_byte: tuple[int, ...] = ()
    first_byte_sum_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GatewayObservation:
    """``problem``: why it does not serve ("" while it does). ``taken_doors``: door → who holds its
    port. ``opening``: doors that are to be open and are not yet. ``gate_problem``: the same of the
    load gate. ``unknown_hosts``: names by which clients came that are not this host's. ``serves``: digest
    of the configuration file that the doors serve, "" while they take a new one.
    ``looked``: False in the first ticks of a daemon, when nothing here was asked yet.
    """

    enabled: bool = False
    problem: str = ""
    gate_problem: str = ""
    traffic: Mapping[str, Reading[Traffic]] = field(default_factory=dict)
    taken_doors: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, Requests] = field(default_factory=dict)
    opening: frozenset[str] = frozenset()
    unknown_hosts: frozenset[str] = frozenset()
    serves: str = ""
    looked: bool = True


@dataclass(frozen=True, slots=True)
class LoadAsk:
    """The load gate asks for room. ``since``: monotonic seconds of the first asking. ``shares``: names
    of resident models whose runner it takes over. ``resident``: (name, bytes on the device) of what was
    resident then, None when not told.
    """

    id: str
    backend: str
    model: str
    predicted_bytes: int
    since: float
    shares: tuple[str, ...] = ()
    resident: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class LoadDone:
    """A granted load has ended. ``detail`` "" when the model is resident now."""

    id: str
    backend: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LoadUndone:
    """A client has asked for a model to leave (keep_alive 0)."""

    backend: str
    model: str


class LoadVerdict(StrEnum):
    """What becomes of a load."""

    GRANT = "grant"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """Answer to one LoadAsk. A grant is a lease: booked until the load ends or ``expires`` in
    ``lease_s`` seconds.
    """

    id: str
    verdict: LoadVerdict
    reason: str = ""
    retry_after_s: int = 5
    lease_s: float = 0.0
