"""The world: time, physics, and the tick that observes it, asks a policy and obeys.

Between two polls it moves in steps of STEP_S while anything grows, else in one.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from arbiterd.core.memory.placement import place
from arbiterd.model.actions import OperatorRequest, Verb
from arbiterd.model.backend import Placement
from arbiterd.model.decision import Decision
from arbiterd.model.devices import Device, ProcessRef
from arbiterd.model.gateway import GatewayObservation
from arbiterd.model.launch import UnitObservation
from arbiterd.model.observation import HostFacts, Observation
from arbiterd.model.settings import BackendSettings, Settings
from arbiterd.quantities import GIB
from arbiterd.sim.cards import PROFILES
from tests.world.acting import Acts
from tests.world.engine import Engine, Faults, Nature
from tests.world.gateloads import Loads
from tests.world.growth import Growth
from tests.world.hardware import Card, Proc, release
from tests.world.monitor import Monitor
from tests.world.sensing import Nvml, Probes
from tests.world.traffic import Flow

STEP_S = 0.025
WALL_0 = 1.8e9
Done = Callable[[str], None]


class Policy(Protocol):
    """Whoever decides. ``restart``: its process ended and a new one begins."""

    def decide(self, observation: Observation, settings: Settings) -> Decision:
        """One tick."""

    def restart(self) -> None:
        """Forget what does not survive."""


@dataclass(slots=True)
class Host:
    """What surrounds the engines. ``profiles``: cards by name (sim/gpu.py); ``slices``: MIG slices of
    the first card, bytes each; ``lag_s``: from a process's end to its bytes; ``ram``: free on the host.
    """

    profiles: tuple[str, ...] = ("rtx4090-24g",)
    slices: tuple[int, ...] = ()
    lag_s: float = 0.3
    can_freeze: bool = True
    ram: int = 64 * GIB


class World:
    """See the module. ``settings`` may be replaced while it runs (a reload)."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        *,
        host: Host | None = None,
        natures: Mapping[str, Nature] | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.host = host or Host()
        self.seed = seed
        self.now = 1000.0
        self.wall_offset = WALL_0
        self.cards = _cards(self.host)
        backends = _backends(settings)
        self.natures = {name: (natures or {}).get(name, Nature()) for name in backends}
        self.faults = {name: Faults() for name in backends}
        self.flows = {name: Flow(service_s=self.natures[name].service_s) for name in backends}
        self.engines: dict[str, Engine] = {}
        self.growths: list[Growth] = []
        self.pids: dict[int, Proc] = {}
        self.fail_starts: dict[str, str] = {}
        self.requests: list[OperatorRequest] = []
        self.hostfacts = HostFacts(ram_free_bytes=self.host.ram)
        self.decision: Decision | None = None
        self.stopping = False
        self.ticks = 0
        self._queued: Settings | None = None
        self.between: list[tuple[float, Callable[[], None]]] = []  # done between two ticks
        self.first_event = self.now
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._pid = 1000
        self._woken = False
        self._flowed = self.now
        self._asked_at = self.now
        self._chances: dict[str, random.Random] = {}
        self._jitter = random.Random(f"{seed}:jitter")
        self._placed: tuple[object, object, dict[str, Placement]] | None = None
        self._gateway = GatewayObservation()
        self._traffic: dict[str, object] = {}
        self._words: dict[str, tuple[str, ...]] = {}
        self.monitor = Monitor(self)
        self.nvml = Nvml(self)
        self.probes = Probes(self)
        self.acts = Acts(self)
        self.loads = Loads(self)
        self.nvml.sample(None)

    # -- time ----------------------------------------------------------------------------------
    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do it in so many seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, what))

    def wake(self) -> None:
        """The loop is woken: a tick out of turn."""
        self._woken = True

    def chance(self, who: str) -> float:
        """0 <= x < 1 of a stream of its own, so that one policy's draws do not shift another's."""
        found = self._chances.get(who)
        if found is None:
            found = self._chances[who] = random.Random(f"{self.seed}:{who}")
        return found.random()

    def advance(self, until: float, *, wakes: bool = True) -> None:
        """Move the physics on, to ``until`` or to what wakes the loop."""
        heap = self._heap
        while self.now < until - 1e-9 and not (wakes and self._woken):
            if any(card.dirty for card in self.cards.values()):
                self.nvml.changed()
            then = until
            if heap and heap[0][0] < then:
                then = max(self.now, heap[0][0])
            if self.growths:
                then = min(then, self.now + STEP_S)
                self._grow(then - self.now)
            self.now = then
            while heap and heap[0][0] <= self.now + 1e-9:
                heapq.heappop(heap)[2]()

    def _grow(self, dt: float) -> None:
        for growth in self.growths:
            growth.step(dt)
        if any(growth.over for growth in self.growths):
            self.growths = [one for one in self.growths if not one.over]
        self.monitor.moved()

    def _flow(self) -> None:
        dt = self.now - self._flowed
        self._flowed = self.now
        wishes = self.decision.gateway.backends if self.decision else {}
        for name, flow in self.flows.items():
            engine = self.engines.get(name)
            serving = engine is not None and engine.serving
            frozen = engine is not None and engine.frozen
            flow.step(dt, wishes.get(name), serving=serving, frozen=frozen)
            if engine is not None:
                engine.burn(dt)

    # -- the tick ------------------------------------------------------------------------------
    def tick(self, count: int = 1) -> Decision:
        """So many ticks of the loop; returns the last decision."""
        poll = self.settings.arbiter.poll_s
        decision = self.decision
        for _ in range(count):
            self.advance(self.now + poll)
            woken, self._woken = self._woken, False
            if self.between and self.now >= self.between[0][0]:
                self.between.pop(0)[1]()
            self._flow()
            if not woken or self.now - self._asked_at >= poll:
                self._asked_at = self.now
                self.nvml.sample(decision)
            seen = self.observe()
            decision = self.decision = self.policy.decide(seen, self.settings)
            self.ticks += 1
            self.monitor.saw(seen, decision)
            if decision.actions:
                self.acts.apply(decision.actions)
            self.probes.order(decision.probes)
            if decision.loads:
                self.loads.answered(decision.loads)
            self._settings(decision)
        assert decision is not None
        return decision

    def _settings(self, decision: Decision) -> None:
        """A layout that did not come up goes back; a newer one waits for the end of a switch."""
        if decision.back_to is not None:
            self.settings = decision.back_to
        elif self._queued is not None and decision.switch is None:
            self.settings, self._queued = self._queued, None

    def run(self, seconds: float) -> None:
        """Tick for so long."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.tick()

    def observe(self) -> Observation:
        """What this moment shows."""
        now = self.now
        devices, nvml = self.nvml.latest()
        outcomes = tuple(self.acts.outcomes)
        if outcomes:
            self.acts.outcomes = []
        requests = tuple(self.requests)
        self.requests = []
        return Observation(
            now=now,
            wall=now + self.wall_offset,
            jitter=self._jitter.random(),
            devices=devices,
            nvml=nvml,
            units=self._units(now),
            health=self.probes.latest(),
            host=self.hostfacts,
            outcomes=outcomes,
            requests=requests,
            logs=self._words,
            stopping=self.stopping,
            gateway=self._doors(now),
            load_asks=self.loads.asks(),
            load_dones=self.loads.dones(),
            can_freeze=self.host.can_freeze,
            xids=self.nvml.take_xids(),
            settings_queued=self._queued is not None,
        )

    def _units(self, now: float) -> dict[str, UnitObservation]:
        units = {name: engine.unit(now) for name, engine in self.engines.items()}
        if any(not e.alive for e in self.engines.values()) or self._words:
            self._words = {n: e.words for n, e in self.engines.items() if not e.alive}
        return units

    def _doors(self, now: float) -> GatewayObservation:
        if not self.settings.gateway.enabled:
            return self._gateway
        shown = {
            name: flow.traffic(now, up=name in self.engines and self.engines[name].up)
            for name, flow in self.flows.items()
        }
        return GatewayObservation(enabled=True, traffic=shown)

    # -- processes -----------------------------------------------------------------------------
    def spawn(self, cards: tuple[Card, ...], holder: str, command: str) -> Proc:
        """A new process of a backend, or of a stranger (holder "")."""
        self._pid += 1
        unit = f"gpu-arbiter-backend-{holder}.service" if holder else "session-4.scope"
        user = "gpu-engines" if holder else "bob"
        proc = Proc(self._pid, self._pid * 7, cards, holder, unit, user, command)
        self.pids[proc.pid] = proc
        return proc

    def ref(self, proc: Proc) -> ProcessRef:
        """Its identity."""
        if proc.ref is None:
            proc.ref = ProcessRef(proc.pid, proc.start_time)
        return proc.ref

    def end(self, proc: Proc, lag_s: float | None = None) -> None:
        """A process ends; its bytes come back after the lag."""
        self.pids.pop(proc.pid, None)
        for growth in self.growths:
            growth.over = growth.over or growth.proc is proc
        for card, size in proc.end():
            lag = card.lag_s if lag_s is None else lag_s
            self.at(lag, lambda card=card, size=size: release(card, size))  # type: ignore[misc]

    def killed(self, proc: Proc) -> None:
        """SIGKILL to one process of a backend."""
        engine = self.engines.get(proc.holder)
        if engine is not None and proc in engine.procs:
            engine.lost(proc)
        else:
            self.end(proc)

    def until_answered(self, engine: Engine, ask: Callable[[Done], None], done: Done) -> None:
        """``done`` once: by the answer, or by the engine's end."""
        engine.call(ask, done)

    # -- facts ---------------------------------------------------------------------------------
    def placement(self, name: str) -> Placement:
        """Where a backend lives in the active mode."""
        return self.placements()[name]

    def placements(self) -> dict[str, Placement]:
        """Of the active mode."""
        devices = [card.device for card in self.cards.values()]
        key = (self.settings, tuple(devices))
        if (
            self._placed is None
            or self._placed[0] is not self.settings
            or self._placed[1] != key[1]
        ):
            headroom = self.settings.arbiter.headroom_bytes
            self._placed = (self.settings, key[1], place(self.settings.active, devices, headroom))
        return self._placed[2]

    def note_oom(self, engine: Engine, what: str) -> None:
        """An allocation of an engine did not fit."""
        self.monitor.oom(engine, what)

    # -- what scenarios do ---------------------------------------------------------------------
    def ask(self, verb: Verb, name: str = "") -> None:
        """An operator's request."""
        self.monitor.excuse(name)
        self.requests.append(OperatorRequest(f"r{self.ticks}", verb, name, "uid 0 (root)"))
        self.wake()

    def reload(self, settings: Settings) -> None:
        """Another configuration is accepted."""
        self._queued = settings
        for name in _backends(settings):
            self.natures.setdefault(name, Nature())
            self.faults.setdefault(name, Faults())
            self.flows.setdefault(name, Flow())
        for name in self.flows:
            self.monitor.excuse(name)
        self.wake()

    def restart_daemon(self, away_s: float) -> None:
        """The daemon ends; engines go on; a new one comes after ``away_s``."""
        self.acts.forget()
        self.requests = []
        self.advance(self.now + away_s, wakes=False)
        self.probes = Probes(self)
        self.policy.restart()
        self.monitor.restarted()

    def stranger(self, card: str, *, command: str = "python3") -> Proc:
        """A process of nobody's."""
        return self.spawn((self.cards[card],), "", command)

    def shift_index(self, shift: int) -> None:
        """NVML numbers the cards anew (a card left the bus)."""
        for card in self.cards.values():
            card.device = replace(card.device, index=card.device.index + shift)


def _backends(settings: Settings) -> dict[str, BackendSettings]:
    found: dict[str, BackendSettings] = {}
    for mode in settings.modes.values():
        found.update(mode.backends)
    return found


def _cards(host: Host) -> dict[str, Card]:
    out: dict[str, Card] = {}
    for index, name in enumerate(host.profiles):
        profile = PROFILES[name]
        parted = index == 0 and bool(host.slices)
        uuid = f"GPU-{index:08d}-0000-0000-0000-000000000000"
        device = Device(
            uuid,
            index,
            profile.name,
            f"00000000:{index + 1:02X}:00.0",
            profile.total_bytes,
            profile.reserved_bytes,
            mig_enabled=parted,
        )
        out[uuid] = Card(device, host.lag_s)
        for number, size in enumerate(host.slices if parted else ()):
            mig = f"MIG-{number:08d}-0000-0000-0000-000000000000"
            piece = Device(mig, index, f"{profile.name} MIG", device.pci_bus_id, size, 0, uuid)
            out[mig] = Card(piece, host.lag_s)
    return out
