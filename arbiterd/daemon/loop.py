"""The tick: observe, decide, act, publish. Runs in the main thread; nothing in it may block."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

from arbiterd import __version__
from arbiterd.act.executor import Executor
from arbiterd.act.exit_logs import LastWords
from arbiterd.act.gateway.reconciler import GatewayKeeper
from arbiterd.act.launch.base import Launcher
from arbiterd.core.backend.carry import pack
from arbiterd.core.decide import decide
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.pressure import critical_free_bytes
from arbiterd.core.state import Carry, State
from arbiterd.daemon.runner_deaths import RunnerDeaths
from arbiterd.daemon.stalls import Stalls
from arbiterd.gateway.paths import Paths
from arbiterd.linux.procfs import SHORT
from arbiterd.model.actions import OperatorRequest
from arbiterd.model.decision import Decision
from arbiterd.model.devices import DeviceObservation
from arbiterd.model.events import Event
from arbiterd.model.gateway import GatewayObservation, LoadAsk, LoadDone, LoadUndone
from arbiterd.model.launch import UnitObservation, UnitState
from arbiterd.model.observation import HostFacts, Observation
from arbiterd.model.published import LoopFacts, PortGuard, Published
from arbiterd.model.settings import Settings
from arbiterd.secrets.values import Secrets
from arbiterd.sense.gateway_log import GatewayLog
from arbiterd.sense.health import Prober
from arbiterd.sense.nvml import NvmlSnapshot, NvmlSource
from arbiterd.sense.processes import attribute
from arbiterd.settings.owner import SettingsOwner
from arbiterd.trace.lines import Tick
from arbiterd.trace.recorder import Tap
from arbiterd.web.load_requests import LoadDesk

PROCESSES_EVERY_S = 2.0  # a process list costs milliseconds under the driver's lock (facts/nvml.md)
PROCESSES_SOON_S = 0.25  # while something starts, stops or loads: its bytes are waited for
KEEP_EVERY_S = 1.0
ANSWER_S = 0.05  # for a sample before a tick; a later one wakes nobody and is the next tick's


class Facts(Protocol):
    """Slow facts of the host."""

    def latest(self, running: frozenset[str]) -> HostFacts:
        """The newest facts. ``running``: backends whose units run now."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop is wired to."""

    launcher: Launcher
    executor: Executor
    nvml: NvmlSource
    prober: Prober
    host: Facts
    publish: Callable[[Published, Sequence[Event]], None]
    keep: Callable[[Carry], None]
    gateway: GatewayParts | None = None
    tap: Tap | None = None
    secrets: Secrets | None = None


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """The doors: who keeps them, their log, and where loads are asked for."""

    keeper: GatewayKeeper
    log: GatewayLog
    loads: LoadDesk
    paths: Paths

    def close(self) -> None:
        """Let go; HAProxy and the gate go on."""
        self.keeper.close()
        self.log.close()


class GatewayFields(TypedDict, total=False):
    """The observation's fields that come from the gateway."""

    gateway: GatewayObservation
    load_asks: tuple[LoadAsk, ...]
    load_dones: tuple[LoadDone, ...]
    load_undones: tuple[LoadUndone, ...]


@dataclass(frozen=True, slots=True)
class Inbox:
    """What came in since the last tick, from operators and from the daemon itself."""

    requests: tuple[OperatorRequest, ...] = ()
    events: tuple[Event, ...] = ()
    stopping: bool = False
    notes: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    ports: PortGuard = PortGuard()


class Loop:
    """Keeps core's state from tick to tick."""

    def __init__(
        self, parts: Parts, owner: SettingsOwner, state: State, on_change: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._owner = owner
        self._state = state
        self._words = LastWords(parts.launcher, on_change, parts.secrets)
        self._deaths = RunnerDeaths(parts.launcher, on_change, parts.secrets)
        self._stalls = Stalls()
        self._tick = 0
        self._last_tick_ms = 0.0
        self._processes_at = -1e9
        self._looked_at = -1e9
        self._kept_at = -1e9
        self._busy = True
        self._seen: NvmlSnapshot | None = None
        self._devices: dict[str, DeviceObservation] = {}
        self._units: Mapping[str, UnitObservation] | None = None
        self.decision: Decision | None = None

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._owner.state.in_force

    def tick(self, inbox: Inbox) -> Published:
        """One tick. Returns what was published."""
        began = time.monotonic()
        unseen_s = self._stalls.look(began, self.settings.arbiter.poll_s)
        if unseen_s:
            self._parts.nvml.excuse(began)
            self._parts.prober.excuse(began)
        config = self._owner.state
        observation = replace(self._observe(began, inbox), unseen_s=unseen_s)
        before = self._state
        decision, self._state = decide(observation, before, self.settings)
        self.decision = decision
        parts = self._parts
        if parts.tap is not None and parts.tap.listeners:
            parts.tap.put(Tick(observation, before, decision, self.settings))
        # Before it is carried out: who comes after us must know what was begun.
        if decision.actions or decision.events or began - self._kept_at >= KEEP_EVERY_S:
            self._kept_at = began
            parts.keep(pack(self._state))
        parts.launcher.watch({n for n, b in self._state.backends.items() if b.effort is not None})
        parts.executor.apply(decision.actions)
        parts.prober.order(decision.probes, self.settings)
        if parts.gateway is not None:
            parts.gateway.keeper.order(decision.gateway, self.settings)
            parts.gateway.loads.answered(
                decision.loads, full=self.settings.arbiter.expose == "full"
            )
        self._watch_lines()
        finished = time.monotonic()
        self._tick += 1
        self._last_tick_ms = (finished - began) * 1000
        published = Published(
            version=__version__,
            settings=self.settings,
            observation=observation,
            decision=decision,
            loop=LoopFacts(
                tick=self._tick,
                period_ms=round(self.settings.arbiter.poll_s * 1000),
                last_tick_ms=self._last_tick_ms,
                finished_at=finished,
                launcher=self._parts.launcher.name,
                config_pending=config.pending,
                config_refused=config.refused,
                notes=inbox.notes,
                ports=inbox.ports,
                stalls=self._stalls.count,
                stalled_s=self._stalls.seconds,
                late_s=self._stalls.late_s,
                missed=self._stalls.missed,
            ),
        )
        stalled = self._stalls.said(began)
        self._parts.publish(published, (*stalled, *inbox.events, *decision.events))
        self._owner.after(decision, self._state.good, self._state.rollback)
        return published

    def _observe(self, now: float, inbox: Inbox) -> Observation:
        parts, queued = self._parts, self._owner.state.queued
        units = self._units_now(now)
        snapshot = parts.nvml.latest(now)
        self._attribute(snapshot)
        return Observation(
            now=now,
            wall=time.time(),
            jitter=random.random(),  # nosec B311 # jitter
            devices=self._devices,
            nvml=snapshot.nvml,
            units=units,
            health=parts.prober.latest(now),
            host=parts.host.latest(
                frozenset(name for name, one in units.items() if one.state is UnitState.RUNNING)
            ),
            outcomes=parts.executor.outcomes(),
            requests=inbox.requests,
            logs=self._words.of(units),
            stopping=inbox.stopping,
            unwritten=inbox.unwritten,
            xids=parts.nvml.xids(now),
            deaths=self._deaths.of(units, self.settings, now),
            can_freeze=parts.launcher.can_freeze,
            settings_queued=queued is not None,
            queued_mode=queued.mode if queued is not None else "",
            **self._gateway(now),
        )

    def _gateway(self, now: float) -> GatewayFields:
        """What the doors tell, and who asks for a load there."""
        parts = self._parts.gateway
        if parts is None:
            return {}
        log = parts.log
        seen = replace(
            parts.keeper.latest(now), requests=log.latest(), unknown_hosts=log.unknown_hosts()
        )
        return {
            "gateway": seen,
            "load_asks": parts.loads.asks(),
            "load_dones": parts.loads.dones(),
            "load_undones": parts.loads.undones(),
        }

    def _units_now(self, now: float) -> Mapping[str, UnitObservation]:
        """Units and their processes; those of the tick before where no descriptor is left to look: that
        ends nobody, and no tick.
        """
        try:
            self._units = self._parts.launcher.observe(now)
        except OSError as error:
            if error.errno not in SHORT or self._units is None:
                raise
        return self._units

    def _attribute(self, snapshot: NvmlSnapshot) -> None:
        """Attribution reads /proc for every listed process: only when the lists are new. Without a
        descriptor to look by, whose the processes are stays as it was, and is asked again.
        """
        try:
            self._attribute_new(snapshot)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            self._devices = {
                uuid: replace(seen, processes=old.processes)
                for uuid, seen in snapshot.devices.items()
                if (old := self._devices.get(uuid)) is not None
            }

    def _attribute_new(self, snapshot: NvmlSnapshot) -> None:
        old = self._seen
        if old is not None and _same_lists(old, snapshot) and self._devices:
            self._devices = {
                uuid: replace(seen, processes=self._devices[uuid].processes)
                for uuid, seen in snapshot.devices.items()
            }
        else:
            self._devices = attribute(snapshot, self._parts.launcher.owner_of, self._devices)
        self._seen = snapshot

    def _watch_lines(self) -> None:
        """Tell the worker under which free memory a card is critical: it looks by itself, wakes the loop
        when memory moves, and then brings the process lists.
        """
        headroom = self.settings.arbiter.headroom_bytes
        self._parts.nvml.watch(
            {
                uuid: critical_free_bytes(headroom_bytes(headroom, seen.device))
                for uuid, seen in self._devices.items()
            }
        )

    def look(self, now: float) -> None:
        """Order a sample for the tick that comes next, and wait for it, ANSWER_S at most."""
        self._looked_at = now
        self.order(now)
        self._parts.nvml.wait(ANSWER_S)

    def order(self, now: float) -> None:
        """Order a sample; with process lists only as often as somebody needs them."""
        quiet = ("ready", "stopped", "failed", "backoff")
        views = self.decision.backends.values() if self.decision else ()
        busy = any(view.phase.value not in quiet or not view.accepting for view in views)
        busy |= self.decision is not None and self.decision.lists_soon
        every = PROCESSES_SOON_S if busy else PROCESSES_EVERY_S
        due = now - self._processes_at >= every * 0.9
        if due:
            self._processes_at = now
        self._parts.nvml.request(now, processes=due)

    def is_look_due(self, now: float) -> bool:
        """Whether ticks out of turn have put off the look of a whole poll."""
        return now - self._looked_at >= self.settings.arbiter.poll_s


def _same_lists(old: NvmlSnapshot, new: NvmlSnapshot) -> bool:
    return old.devices.keys() == new.devices.keys() and all(
        old.devices[uuid].processes is seen.processes for uuid, seen in new.devices.items()
    )
