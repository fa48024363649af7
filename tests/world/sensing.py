"""What sense would see of the world: NVML by orders and looks, lists when due, probes at their pace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arbiterd.daemon.loop import PROCESSES_EVERY_S, PROCESSES_SOON_S
from arbiterd.model.decision import Decision
from arbiterd.model.devices import DeviceObservation, GpuProcess, GpuState, Memory, XidEvent
from arbiterd.model.health import (
    HealthObservation,
    ProbeOrder,
    ProbeResult,
    Progress,
    Trial,
    Verdict,
)
from arbiterd.model.reading import Known, Reading, Unknown
from arbiterd.model.settings import Kind
from arbiterd.sense import looks
from arbiterd.sense.health import COUNTERS_S, FAST_S, SLOW_S
from arbiterd.sense.nvml import BLIND_S, LATE_S
from arbiterd.sense.nvml_worker import AGAIN_S, DROP_BYTES, JUMP_BYTES
from arbiterd.sense.plausible import memory_problem
from tests.world.gateloads import FACTOR, SPARE
from tests.world.hardware import Card
from tests.world.kinds import Vllm

if TYPE_CHECKING:
    from tests.world.engine import Engine
    from tests.world.world import World

TIMEOUT_S = 2.0  # of a probe
_QUIET = ("ready", "stopped", "failed", "backoff")
_NOT_YET: Reading[object] = Unknown("not probed yet", 0.0)


class Nvml:
    """Samples are ordered before a tick, as in the loop. What the worker does by itself
    (sense/nvml_worker.py): looks at free memory, which wake the loop when it moved; lists when it has
    moved, a second look at a suspicious sample; what cannot be true is dropped.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._lists: dict[str, Reading[tuple[GpuProcess, ...]]] = {}
        self._memory: dict[str, Memory] = {}
        self._free: dict[str, int] = {}
        self._lists_at = -1e9
        self._suspicious = False
        self._cards: dict[str, looks.Card] = {}
        self._looked_at = world.now
        self._look_out = False
        self.sample_at = world.now
        self.hung_until = -1.0
        self.stale_until = -1.0
        self.glitches: dict[str, int] = {}
        self.devices: dict[str, DeviceObservation] = {}
        self.xids: list[XidEvent] = []

    def changed(self) -> None:
        """Memory has moved: the look that would see it comes in its time."""
        for card in self._world.cards.values():
            card.dirty = False
        if not self._look_out:
            self._look_out = True
            every, now = self._every_s(), self._world.now
            self._world.at(every - (now - self._looked_at) % every, self._look)

    def _every_s(self) -> float:
        line = self._world.monitor.critical_line
        return min(
            (looks.next_look_s(c.free, line(u), c.fastest) for u, c in self._cards.items()),
            default=looks.LONGEST_S,
        )

    def _look(self) -> None:
        world, now = self._world, self._world.now
        self._look_out, self._looked_at = False, now
        if now < self.hung_until or now < self.stale_until:
            return
        news = False
        for uuid, card in world.cards.items():
            if not card.lost and uuid in self._cards:
                line = world.monitor.critical_line(uuid)
                news |= self._cards[uuid].look(card.free, now, line)
        if news:
            self.sample(world.decision, own=True)
            world.wake()
        elif any(abs(one.free - one.told) > looks.MOVED_BYTES for one in self._cards.values()):
            self.changed()  # it is told as soon as it is not too often

    def sample(self, decision: Decision | None, *, again: bool = False, own: bool = False) -> None:
        """Read every card, lists too when somebody needs them. ``own``: nobody has asked."""
        world, now = self._world, self._world.now
        if now < self.hung_until:
            return
        due = again or (not own and self._due(decision))
        if due:
            self._lists_at = now
        stale = now < self.stale_until
        self.sample_at = now
        self._suspicious = False
        self.devices = {
            uuid: self._read(uuid, card, now, due=due, stale=stale)
            for uuid, card in world.cards.items()
        }
        if self._suspicious and not again:
            world.at(AGAIN_S, self._again)

    def _again(self) -> None:
        self.sample(self._world.decision, again=True)
        self._world.wake()

    def _due(self, decision: Decision | None) -> bool:
        views = decision.backends.values() if decision else ()
        busy = any(view.phase.value not in _QUIET or not view.accepting for view in views)
        soon = busy or (decision is not None and decision.lists_soon)
        every = PROCESSES_SOON_S if soon else PROCESSES_EVERY_S
        return self._world.now - self._lists_at >= every - 1e-6

    def _read(
        self, uuid: str, card: Card, now: float, *, due: bool, stale: bool
    ) -> DeviceObservation:
        if card.lost:
            unknown = Unknown("no longer listed by NVML", now)
            return DeviceObservation(card.device, GpuState.LOST, unknown, unknown, unknown.reason)
        old = self.devices.get(uuid)
        if stale and old is not None:
            return old
        device, used = card.device, card.used
        if uuid in self.glitches:
            used = self.glitches.pop(uuid)
        memory = self._memory.get(uuid)
        if memory is None or memory.used_bytes != used:
            free = device.capacity_bytes - used
            memory = Memory(device.total_bytes, device.reserved_bytes, used, free)
            if old is not None and memory_problem(memory, device.total_bytes):
                return old
            self._memory[uuid] = memory
            self._judge(uuid, free)
            due |= abs(free - self._free.get(uuid, free)) > JUMP_BYTES
            self._free[uuid] = free
        self._tell(uuid, card.free, now)
        if due or uuid not in self._lists:
            self._lists[uuid] = Known(self._processes(card, now), now)
        return DeviceObservation(device, GpuState.OK, Known(memory, now), self._lists[uuid], "")

    def _tell(self, uuid: str, free: int, now: float) -> None:
        seen = self._cards.get(uuid)
        if seen is None:
            self._cards[uuid] = looks.Card.of(free, now)
        else:
            seen.tell(free, now)

    def _judge(self, uuid: str, free: int) -> None:
        """Whether this sample wants a second look."""
        before = self._free.get(uuid, free)
        line = self._world.monitor.critical_line(uuid)
        self._suspicious |= before - free > DROP_BYTES or free < line <= before

    def _processes(self, card: Card, now: float) -> tuple[GpuProcess, ...]:
        return tuple(
            GpuProcess(
                proc.pid,
                self._world.ref(proc),
                Known(proc.held, now),
                proc.holder,
                proc.unit,
                proc.user,
                proc.command,
            )
            for proc in card.procs.values()
        )

    def latest(self) -> tuple[dict[str, DeviceObservation], str]:
        """The newest sample with its age judged, as sense/nvml.py judges it."""
        now = self._world.now
        age = now - self.sample_at
        if age <= LATE_S and not (self.stale_until > 0 and now - self.stale_until < BLIND_S):
            return self.devices, ""
        text = f"hung for {age:.1f} s" if age > BLIND_S else ""
        if LATE_S < age <= BLIND_S:
            text = f"late: no answer for {age:.1f} s"
        return {uuid: _judged(seen, now, text) for uuid, seen in self.devices.items()}, text

    def take_xids(self) -> tuple[XidEvent, ...]:
        """Those since the last call."""
        if not self.xids:
            return ()
        out, self.xids = tuple(self.xids), []
        return out


def _judged(seen: DeviceObservation, now: float, trouble: str) -> DeviceObservation:
    """What is too old is unknown, not wrong."""
    if seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
        return seen
    at = seen.memory.at
    if now - at <= BLIND_S:
        return seen
    why = trouble or f"no reading for {now - at:.1f} s"
    state = GpuState.HUNG if "hung" in why else GpuState.UNKNOWN
    unknown = Unknown(why, at)
    return replace(seen, state=state, memory=unknown, processes=unknown, detail=why)


@dataclass(slots=True)
class _Target:
    order: ProbeOrder
    next_at: float
    counters_at: float = -1e9
    canary_at: float | None = None
    stuck_since: float | None = None
    shown: HealthObservation | None = None


class Probes:
    """Answers arrive when the engine gives them: a hung or frozen one is a timeout."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._targets: dict[str, _Target] = {}
        self._seq = 0

    def order(self, orders: tuple[ProbeOrder, ...]) -> None:
        """As the prober takes them."""
        wanted = {one.backend: one for one in orders}
        for name in [n for n in self._targets if n not in wanted]:
            del self._targets[name]
        for name, one in wanted.items():
            old = self._targets.get(name)
            if old is None or old.order.fence != one.fence:
                old = self._targets[name] = _Target(one, self._world.now + 0.02)
            if one.fast and not old.order.fast:
                old.next_at = min(old.next_at, self._world.now + 0.02)
            if one.canary_due and old.canary_at is None:
                old.canary_at = self._world.now + 0.15
            old.order = one

    def latest(self) -> dict[str, HealthObservation]:
        """Newest results by backend; the same objects while nothing new has come."""
        now, out = self._world.now, {}
        for name, target in self._targets.items():
            engine = self._world.engines.get(name)
            if now >= target.next_at:
                self._alive(name, target, engine)
            if target.order.trial:
                self._trial(target, engine)
            if target.canary_at is not None and now >= target.canary_at:
                self._canary(name, target, engine)
            shown = target.shown
            if shown is None:
                shown = target.shown = _blank(name)
            out[name] = shown
        return out

    def _result(self, ok: bool, detail: str, latency_ms: float) -> Known[ProbeResult]:
        self._seq += 1
        verdict = Verdict(ok, "" if ok else detail)
        return Known(ProbeResult(self._seq, verdict, latency_ms), self._world.now)

    def _alive(self, name: str, target: _Target, engine: Engine | None) -> None:
        now = self._world.now
        period = FAST_S if target.order.fast else SLOW_S
        shown = target.shown or _blank(name)
        silent = engine is not None and engine.alive and engine.frozen
        if silent:  # no answer until it thaws, or the probe's time is up
            target.stuck_since = now if target.stuck_since is None else target.stuck_since
            if now - target.stuck_since < TIMEOUT_S:
                return
        target.stuck_since = None
        ok = engine is not None and engine.responsive
        why = "timeout" if silent else "refused" if engine is None or not engine.up else "HTTP 503"
        shown = replace(shown, alive=self._result(ok, why, 1.0))
        if ok and engine is not None and now - target.counters_at >= COUNTERS_S * 0.9:
            target.counters_at = now
            shown = self._counters(engine, shown)
        target.shown = shown
        target.next_at = now + period - 0.005

    def _counters(self, engine: Engine, shown: HealthObservation) -> HealthObservation:
        now, flow = self._world.now, self._world.flows[engine.name]
        if engine.settings.kind is Kind.OLLAMA:
            warm = engine.settings.models[0] if engine.settings.models else ""
            size = engine.nature.models.get(warm)
            guess = int(size * FACTOR) + SPARE if size else None
            return replace(shown, loaded=Known(engine.loaded(), now), warm_bytes=guess)
        if isinstance(engine, Vllm):
            counted = Progress(round(flow.in_flight), 0, float(int(flow.good * 50)))
            return replace(shown, progress=Known(counted, now))
        return shown

    def _trial(self, target: _Target, engine: Engine | None) -> None:
        model, shown = target.order.trial, target.shown or _blank(target.order.backend)
        if shown.trial is None or shown.trial.model != model:
            ok = engine is not None and engine.responsive
            trial = Trial(model, ok, "" if ok else "refused", self._world.now - 0.01)
            target.shown = replace(shown, trial=trial)

    def _canary(self, name: str, target: _Target, engine: Engine | None) -> None:
        shown = target.shown or _blank(name)
        now = self._world.now
        if (
            engine is not None
            and engine.alive
            and (engine.frozen or engine.faults.hung or engine.asleep)
        ):
            began = (target.canary_at or now) - 0.15
            if now - began < 5.0:
                return
            target.canary_at = None
            target.shown = replace(shown, canary=self._result(False, "timeout", 5000.0))
            return
        target.canary_at = None
        if engine is None or (engine.settings.kind is Kind.OLLAMA and not engine.loaded()):
            return
        if engine.settings.kind is Kind.GENERIC:
            return
        ok = engine.responsive
        target.shown = replace(shown, canary=self._result(ok, "refused", 150.0))


def _blank(name: str) -> HealthObservation:
    unknown = Unknown("not probed yet", 0.0)
    return HealthObservation(name, unknown, unknown, unknown, unknown)
