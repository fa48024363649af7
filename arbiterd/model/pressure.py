"""Pressure as published: the numbers behind a band, who could give memory back, and what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Rung(StrEnum):
    """Steps of the ladder. The first three are brakes: they free nothing and act at once. The rest
    are reclaims, mildest first (design, section 5).
    """

    HOLD = "hold"
    THROTTLE = "throttle"
    FREEZE = "freeze"
    TRIM = "trim"
    SLEEP = "sleep"
    RESTART = "restart"
    STOP = "stop"


class NotNow(StrEnum):
    """Why a backend over its cap is left alone for the moment."""

    NOT_CRITICAL = "not_critical"
    SPIKE = "spike"
    PHASE = "phase"
    WITHIN_LINE = "within_line"
    FUTILE = "futile"
    OTHERS_GROW = "others_grow"
    ELSEWHERE = "elsewhere"
    BUDGET_SPENT = "budget_spent"
    COOLDOWN = "cooldown"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend as the ladder ranks it: what could be done to it, and why it is or is not done.

    ``bytes_expected``: what the rung would free. ``chosen``: it is the one. ``not_now``: it is over its cap
    and must wait all the same.
    """

    backend: str
    rung: Rung
    bytes_expected: int
    chosen: bool
    reason: str
    not_now: NotNow | None = None


@dataclass(frozen=True, slots=True)
class ReclaimView:
    """The one reclaim in flight on a device. ``began`` is wall time; ``incident`` tells its story."""

    rung: Rung
    backend: str
    reason: str
    began: float
    bytes_expected: int
    bytes_freed: int
    stage: str
    incident: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """One holder's trend: ``over_bytes`` above its cap (foreign: above its allowance), ``slope`` in
    bytes a second over the last seconds, None while too few samples tell.
    """

    name: str
    over_bytes: int
    slope: float | None
    growing: bool


@dataclass(frozen=True, slots=True)
class BrakesView:
    """Brakes on one backend: why its new requests are held ("": not), how many it may have in flight
    (None: all), whether it is frozen for a moment.
    """

    hold: str
    limit: int | None
    frozen: bool


@dataclass(frozen=True, slots=True)
class PressureView:
    """The numbers behind a device's band. Bytes and seconds; None: not known.

    ``tight_below``, ``calm_above``: limits of solvency; ``critical_below``: of free memory.
    ``excess_bytes``: over caps, foreign over its allowance, unattributed. ``lead_s``: how long the
    mildest reclaim is expected to take. ``disruptive``: sleeps, restarts and stops within the window.
    ``fault``: why nothing is started on it (an Xid that needs a reset), "" for none.

    Solvency's terms, all of the same sample: capacity - ``granted_bytes`` (the sum of max(cap, used))
    - ``foreign_over_bytes`` (beyond the allowance) - ``unattributed_bytes``. ``releasing_bytes`` are of
    the dead and on their way back: in none of them. ``brakes``: what ``braked`` says in words. ``calm_s``:
    for how long it must be calm.
    """

    solvency_bytes: int | None
    free_bytes: int | None
    tight_below: int
    calm_above: int
    critical_below: int
    excess_bytes: int
    slope: float | None
    time_to_full_s: float | None
    lead_s: float
    holders: tuple[Holder, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    reclaim: ReclaimView | None = None
    braked: Mapping[str, str] = field(default_factory=dict)
    loads_held: str = ""
    disruptive: int = 0
    disruptive_max: int = 0
    fault: str = ""
    capacity_bytes: int = 0
    granted_bytes: int | None = None
    foreign_over_bytes: int | None = None
    unattributed_bytes: int | None = None
    releasing_bytes: int = 0
    brakes: Mapping[str, BrakesView] = field(default_factory=dict)
    calm_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LearnedCap:
    """What OOMs have taught about one backend on one device (design, section 5).

    Kept in state_dir/learned.json, one entry per (mode, backend, GPU, model, engine version).
    ``lowered_bytes`` is taken off the configured cap at the next start. ``at`` is the wall time of
    the last OOM or undoing step, ``ooms`` how many were counted. ``on_cpu``: started without a GPU.
    """

    mode: str
    backend: str
    gpu: str
    model: str
    version: str
    lowered_bytes: int
    step_bytes: int
    ooms: int
    at: float
    reason: str
    on_cpu: bool = False

    @property
    def key(self) -> str:
        """Its place in ``State.learned`` (core/memory/learn.key)."""
        return f"{self.mode}|{self.backend}|{self.gpu}|{self.model}|{self.version}"
