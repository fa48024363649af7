"""Events of the journal and incidents."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """Severity; maps to syslog priorities 6, 5, 4, 3, 2."""

    INFO = "info"
    NOTICE = "notice"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class EventName(StrEnum):
    """Every kind of journal event (contract, section 5). One MESSAGE_ID each: report/catalogue."""

    START = "start"
    READY = "ready"
    EXIT = "exit"
    RESTART = "restart"
    CRASH_LOOP = "crash_loop"
    UNHEALTHY = "unhealthy"
    RECOVERED = "recovered"
    STUCK = "stuck"
    PRESSURE_RISE = "pressure_rise"
    PRESSURE_CALM = "pressure_calm"
    SHED = "shed"
    UNSHED = "unshed"
    RECLAIM = "reclaim"
    THROTTLE = "throttle"
    UNTHROTTLE = "unthrottle"
    FREEZE = "freeze"
    SLEEP = "sleep"
    WAKE = "wake"
    KILL = "kill"
    CLEANUP = "cleanup"
    RELEASED = "released"
    OOM = "oom"
    CAP_LOWERED = "cap_lowered"
    CAP_RESTORED = "cap_restored"
    RELEASE_SLOW = "release_slow"
    LEAK = "leak"
    FOREIGN_MEMORY = "foreign_memory"
    GPU_LOST = "gpu_lost"
    GPU_FAULT = "gpu_fault"
    XID = "xid"
    DRIVER_HUNG = "driver_hung"
    DRIVER_BACK = "driver_back"
    GPU_RENUMBERED = "gpu_renumbered"
    READING_DROPPED = "reading_dropped"
    MODE_SWITCH = "mode_switch"
    RELOAD = "reload"
    CONFIG_PENDING = "config_pending"
    CONFIG_REFUSED = "config_refused"
    PORT_TAKEN = "port_taken"
    PORTS_OPEN = "ports_open"
    UNKNOWN_HOST = "unknown_host"
    STOPPED_BY_OPERATOR = "stopped_by_operator"
    LOAD_HELD = "load_held"
    LOAD_ADMITTED = "load_admitted"
    LOAD_REFUSED = "load_refused"
    ORPHAN_KILLED = "orphan_killed"
    RELOAD_REFUSED = "reload_refused"
    ROLLBACK = "rollback"
    ADOPTED = "adopted"
    FAILOVER = "failover"
    FAILBACK = "failback"
    ALL_UNAVAILABLE = "all_unavailable"
    BLOCKED_START = "blocked_start"
    STOP = "stop"
    GATEWAY_DOWN = "gateway_down"
    DOOR_BROKEN = "door_broken"
    RUNNER_DIED = "runner_died"
    LOOP_STALLED = "loop_stalled"
    STATE_UNREADABLE = "state_unreadable"
    STATE_UNWRITABLE = "state_unwritable"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Event:
    """One journal entry. Empty strings and None mean: the field does not apply and is left out.

    ``kind``: the rung of a reclaim or the class of an OOM, for counters; not a field of the journal.
    """

    name: EventName
    severity: Severity
    message: str
    incident: str = ""
    action: str = ""
    backend: str = ""
    gpu: str = ""
    reason: str = ""
    bytes_expected: int | None = None
    bytes_freed: int | None = None
    took_ms: float | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """An action as an incident tells of it. Times are wall time, epoch seconds."""

    id: str
    action: str
    target: str
    reason: str
    started_at: float
    took_ms: float | None = None
    bytes_expected: int | None = None
    bytes_freed: int | None = None
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Incident:
    """From the first sign to recovery, one id. Times are wall time, epoch seconds."""

    id: str
    event: EventName
    severity: Severity
    opened_at: float
    summary: str
    backend: str = ""
    gpu: str = ""
    closed_at: float | None = None
    pids: tuple[int, ...] = ()
    evidence: tuple[tuple[str, str], ...] = field(default=())
    actions: tuple[ActionRecord, ...] = ()
