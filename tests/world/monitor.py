"""Watches a world with the eyes of an impartial observer: what happened, and what must never.

It knows the truth (who holds what), so it judges any policy alike.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arbiterd.core.memory.ledger import HEADROOM
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.pressure import critical_free_bytes, over_margin
from arbiterd.model.actions import (
    Action,
    FreezeBackend,
    Outcome,
    SleepBackend,
    StopBackend,
    UnloadModel,
)
from arbiterd.model.decision import Decision
from arbiterd.model.devices import GpuState
from arbiterd.model.events import Event
from arbiterd.model.gateway import Admit
from arbiterd.model.observation import Observation
from arbiterd.model.reading import Known
from arbiterd.sense.nvml import BLIND_S

if TYPE_CHECKING:
    from tests.world.engine import Engine
    from tests.world.world import World

DISRUPTIVE_MAX = 6  # per card and window (design, 5)
WINDOW_S = 600.0
FLOOR = 0.7  # of the configured cap
EXCUSED_S = 60.0  # an operator's word, a reload: what is stopped so soon after was meant to
_SHUT = (Admit.HOLD, Admit.SHED)


@dataclass(frozen=True, slots=True)
class Oom:
    """``what``: start, load, wake, workspace, leak, pool. ``over``: it held more than its cap.
    ``guilty``: somebody on the card was over by more than what counts (core/memory/pressure.py).
    """

    at: float
    backend: str
    what: str
    over: bool
    guilty: bool


@dataclass(frozen=True, slots=True)
class Disruption:
    """A sleep, restart or stop of a live engine that nobody asked for. ``over``: above its cap."""

    at: float
    backend: str
    gpu: str
    action: str
    reason: str
    over: bool


@dataclass(slots=True)
class Monitor:
    """``broken``: rules that did not hold, each once with its first time."""

    world: World
    strict: bool = True
    began: float = 0.0
    ooms: list[Oom] = field(default_factory=list)
    disruptions: list[Disruption] = field(default_factory=list)
    freezes: list[tuple[float, str]] = field(default_factory=list)
    unloads: list[tuple[float, str]] = field(default_factory=list)
    foreign_signals: int = 0
    events: deque[tuple[float, Event]] = field(default_factory=lambda: deque(maxlen=20_000))
    broken: dict[str, str] = field(default_factory=dict)
    braked: dict[str, float] = field(default_factory=dict)
    braked_first: dict[str, float] = field(default_factory=dict)
    critical_at: dict[str, float] = field(default_factory=dict)
    least_free: dict[str, int] = field(default_factory=dict)
    _excused: dict[str, float] = field(default_factory=dict)
    _reclaiming: dict[str, dict[str, str]] = field(default_factory=dict)
    _opened: set[str] = field(default_factory=set)

    def rule(self, name: str, text: str) -> None:
        """A rule is broken."""
        self.broken.setdefault(name, f"at {self.world.now - 1000:.2f} s: {text}")

    def excuse(self, name: str) -> None:
        """Somebody with the right to do so has asked for a stop of this backend (or of all)."""
        for one in self.world.flows if not name else (name,):
            self._excused[one] = self.world.now

    def restarted(self) -> None:
        """The daemon has: reclaims in flight are nobody's."""
        self._reclaiming.clear()

    # -- truth ---------------------------------------------------------------------------------
    def moved(self) -> None:
        """After a step of growth."""
        for uuid, card in self.world.cards.items():
            free = card.free
            if free < self.least_free.get(uuid, 1 << 62):
                self.least_free[uuid] = free
            if free >= self.critical_line(uuid):
                self.critical_at.pop(uuid, None)
            elif uuid not in self.critical_at:
                self.critical_at[uuid] = self.world.now

    def critical_line(self, uuid: str) -> int:
        """Free bytes under which the card is critical."""
        device = self.world.cards[uuid].device
        setting = self.world.settings.arbiter.headroom_bytes
        return critical_free_bytes(headroom_bytes(setting, device))

    def oom(self, engine: Engine, what: str) -> None:
        """An allocation did not fit."""
        guilty = any(
            one.alive and one.held - one.cap > over_margin(one.cap)
            for one in self.world.engines.values()
        )
        over = engine.held > engine.cap
        self.ooms.append(Oom(self.world.now, engine.name, what, over, guilty))

    # -- actions -------------------------------------------------------------------------------
    def ordered(self, action: Action) -> None:
        """An action leaves the loop."""
        world = self.world
        engine = world.engines.get(action.backend)
        if isinstance(action, UnloadModel):
            self.unloads.append((world.now, action.backend))
            self._reclaim(action, "unload")
        elif isinstance(action, FreezeBackend):
            self.freezes.append((world.now, action.backend))
            self._brake(action.backend)
            self._not_blind(action, "freeze")
        elif isinstance(action, StopBackend | SleepBackend) and engine is not None:
            if not engine.alive or not engine.up or self._excuse_for(engine):
                return
            over = engine.held > engine.cap or self._seen_over(engine)
            one = Disruption(
                world.now, engine.name, action.gpu, type(action).__name__, action.reason, over
            )
            self.disruptions.append(one)
            self._reclaim(action, one.action)
            self._not_blind(action, one.action)
            if not over:
                self.rule(
                    "innocent", f"{one.action} of {engine.name} within its cap: {action.reason}"
                )
            recent = [
                d for d in self.disruptions if d.gpu == action.gpu and world.now - d.at < WINDOW_S
            ]
            if len(recent) > DISRUPTIVE_MAX:
                self.rule("bound", f"{len(recent)} disruptive actions in 10 min on {action.gpu}")

    def ended(self, outcome: Outcome) -> None:
        """An action has ended; its bytes are back after the card's lag."""
        action = outcome.action
        if isinstance(action, UnloadModel | SleepBackend | StopBackend):
            open_ = self._reclaiming.get(action.gpu, {})
            open_.pop(action.id, None)

    def _excuse_for(self, engine: Engine) -> bool:
        world = self.world
        asked = world.now - self._excused.get(engine.name, -1e9) < EXCUSED_S
        unwanted = engine.name not in world.settings.active.backends
        unwell = engine.faults.hung or engine.faults.sick or engine.broken
        return asked or unwanted or unwell or world.stopping

    def _seen_over(self, engine: Engine) -> bool:
        """Whether the newest sample showed it above its cap."""
        for card in engine.cards:
            seen = self.world.nvml.devices.get(card.device.uuid)
            if seen is None or not isinstance(seen.processes, Known):
                continue
            held = sum(
                p.used_bytes.value
                for p in seen.processes.value
                if p.holder == engine.name and isinstance(p.used_bytes, Known)
            )
            if held > engine.cap:
                return True
        return False

    def _reclaim(self, action: Action, what: str) -> None:
        open_ = self._reclaiming.setdefault(action.gpu, {})
        others = {name for name in open_.values() if name != action.backend}
        if others and action.gpu:
            self.rule("one reclaim", f"{what} of {action.backend} beside {sorted(others)}")
        open_[action.id] = action.backend

    def _not_blind(self, action: Action, what: str) -> None:
        seen = self.world.nvml.devices.get(action.gpu)
        if not action.gpu or seen is None:
            return
        age = self.world.now - self.world.nvml.sample_at
        if age > BLIND_S or seen.state is not GpuState.OK:
            self.rule("blind", f"{what} of {action.backend} on a card that cannot be read")

    # -- each tick -----------------------------------------------------------------------------
    def saw(self, seen: Observation, decision: Decision) -> None:
        """After each decision."""
        now = self.world.now
        for event in decision.events:
            self.events.append((now, event))
        for name, wish in decision.gateway.backends.items():
            engine = self.world.engines.get(name)
            if wish.admit is Admit.UP:
                self._opened.add(name)
            well = engine is not None and engine.serving and not engine.frozen
            shut = wish.admit in _SHUT and name in self._opened and well
            usual = self.world.settings.active.backends[name].max_in_flight
            if shut or wish.max_in_flight < usual:
                self._brake(name)
            else:
                self.braked.pop(name, None)
        if self.strict:
            self._check(seen, decision)

    def _brake(self, name: str) -> None:
        self.braked.setdefault(name, self.world.now)
        self.braked_first.setdefault(name, self.world.now)

    def _check(self, seen: Observation, decision: Decision) -> None:
        for uuid, view in decision.devices.items():
            device = seen.devices.get(uuid)
            if device is None or not isinstance(device.memory, Known):
                continue
            rows = [r.used_bytes for r in view.rows if r.holder != HEADROOM]
            total = sum(one for one in rows if one is not None)
            if None not in rows and total != device.memory.value.used_bytes:
                self.rule("ledger", f"{uuid}: rows {total}, used {device.memory.value.used_bytes}")
        placements = self.world.placements()
        for name, shown in decision.backends.items():
            cap = placements[name].cap_bytes if name in placements else 0
            if shown.cap_bytes < int(cap * FLOOR):
                self.rule("floor", f"{name}: {shown.cap_bytes} of {cap}")
