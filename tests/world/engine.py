"""An engine of the world: what it holds, how it starts, grows and dies. Kinds are in kinds.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arbiterd.model.backend import Placement
from arbiterd.model.health import LoadedModel
from arbiterd.model.launch import Exit, LaunchSpec, UnitObservation, UnitState
from arbiterd.model.settings import BackendSettings
from arbiterd.quantities import GIB, MIB
from tests.world.growth import CHUNK, Growth
from tests.world.hardware import Card, Proc

if TYPE_CHECKING:
    from tests.world.world import World

CPU_BUSY = 0.9  # CPU seconds a second of a starting or working engine


@dataclass(frozen=True, slots=True)
class Nature:
    """How an installation behaves, whatever it is told. Bytes and seconds.

    ``start_s``: process to ready. ``context``: CUDA context and libraries, outside of any pool.
    ``weights``: of the model (vLLM: also what its sleep moves to the host). ``spike``: workspace
    that comes and goes while it works, the first thing that fails on a full card. ``stop_s``: from
    SIGTERM to its end. ``unload_s``: from an unload request to the bytes (Ollama). ``models``: sizes
    of what can be loaded. ``asleep``: what stays on the card in sleep.
    """

    start_s: float = 4.0
    context: int = 400 * MIB
    weights: int = 6 * GIB
    spike: int = 96 * MIB
    spike_every_s: float = 7.0
    spike_s: float = 0.3
    stop_s: float = 0.5
    load_s: float = 3.0
    unload_s: float = 0.8
    sleep_s: float = 2.0
    wake_s: float = 1.5
    asleep: int = 1200 * MIB
    service_s: float = 2.0
    models: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Faults:
    """What is broken about it now."""

    ignores_unload: bool = False
    ignores_term: bool = False
    sleep_fails: bool = False
    hung: bool = False
    start_hangs: bool = False
    sick: bool = False
    crash_start: tuple[Exit, str] | None = None
    crashes_left: int = 0
    lag_s: float | None = None


class Engine:
    """One running backend. Ended ones stay until their unit is forgotten."""

    fixed_pool = False

    def __init__(
        self, world: World, settings: BackendSettings, placement: Placement, spec: LaunchSpec
    ) -> None:
        self.world = world
        self.name = settings.name
        self.settings = settings
        self.spec = spec
        self.cap = placement.cap_bytes
        self.nature = world.natures[self.name]
        self.faults = world.faults[self.name]
        self.cards: tuple[Card, ...] = tuple(world.cards[uuid] for uuid in placement.devices)
        self.main = world.spawn(self.cards, self.name, f"{self.name} serve")
        self.invocation = f"inv-{self.main.pid}"
        self.procs: list[Proc] = [self.main]
        self.growths: list[Growth] = []
        self.began = world.now
        self.cpu_s = 0.0
        self.alive = True
        self.up = False  # it answers
        self.asleep = False
        self.stopping = False
        self.broken = False  # no known state: a sleep or a wake has failed
        self.frozen = False
        self.exit: Exit | None = None
        self.words: tuple[str, ...] = ()
        self.work = 0.0
        self.spiking = 0
        self._waiting: list[Callable[[str], None]] = []
        self._unit: UnitObservation | None = None
        self._unit_key: object = None

    # -- to be said by each kind ---------------------------------------------------------------
    def start(self) -> None:
        """Begin to start; ends in ``ready`` or ``die``."""
        self.seize(self.main, self.nature.context)
        if self.alive:
            self.later(self.nature.start_s, self.ready)

    def oom_words(self) -> tuple[str, ...]:
        """What it says when an allocation fails."""
        return ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 64.00 MiB.",)

    def oom(self, what: str) -> None:
        """An allocation did not fit: by default the engine dies of it."""
        self.world.note_oom(self, what)
        self.die(Exit(code=1), *self.oom_words())

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Resident models."""
        return ()

    def load(self, model: str, keep_s: float, done: Callable[[str], None]) -> None:
        """Load a model; ``done`` with "" or what went wrong."""
        del keep_s
        done(f"{self.name} loads nothing at run time: {model}")

    def unload(self, model: str) -> None:
        """Asked to give a model back."""

    def sleep(self, done: Callable[[str], None]) -> None:
        """Give most of it back and wait."""
        done("404: no such route")

    def wake(self, done: Callable[[str], None]) -> None:
        """Take it again."""
        done("404: no such route")

    # -- life ----------------------------------------------------------------------------------
    def later(self, delay_s: float, what: Callable[[], object]) -> None:
        """Do it later, if it lives then; as long as its start hangs, not yet."""

        def then() -> None:
            if self.alive and self.start_hangs:
                self.world.at(1.0, then)
            elif self.alive:
                what()

        self.world.at(delay_s, then)

    def seize(self, proc: Proc, size: int, what: str = "start") -> bool:
        """Allocate, or run out of memory."""
        if proc.gone:
            return False
        if proc.take(size):
            return True
        self.oom(what)
        return False

    def ready(self) -> None:
        """It answers from now on."""
        self.up = True
        if self.nature.spike and self.nature.spike_every_s:
            self.later(self.nature.spike_every_s * self.world.chance(self.name), self._spike)

    def grow(
        self,
        rate: float,
        total: float,
        *,
        by_load: bool = False,
        chunk: int = CHUNK,
        what: str = "leak",
    ) -> Growth:
        """Grow by ``rate`` bytes a second until ``total`` are taken."""
        flow = self.world.flows[self.name]
        nominal = max(1.0, flow.offered)

        def speed() -> float:
            if self.frozen or self.asleep or not self.up or self.faults.hung:
                return 0.0
            return flow.in_flight / nominal if by_load else 1.0

        one = Growth(self.growing_proc(), rate, total, lambda: self.oom(what), speed, chunk)
        one.planned = False
        self.growths.append(one)
        self.world.growths.append(one)
        return one

    def growing_proc(self) -> Proc:
        """The process whose memory grows."""
        return self.main

    def _spike(self) -> None:
        """Workspace for a moment, while requests run."""
        flow, nature = self.world.flows[self.name], self.nature
        every = nature.spike_every_s * (0.5 + self.world.chance(self.name))
        self.later(every, self._spike)
        if flow.in_flight < 0.5 or self.frozen or self.asleep or self.spiking:
            return
        proc = self.growing_proc()
        if self.seize(proc, nature.spike, "workspace"):
            self.spiking = nature.spike
            self.later(nature.spike_s, lambda: self._spike_over(proc))

    def _spike_over(self, proc: Proc) -> None:
        proc.give(self.spiking)
        self.spiking = 0

    def term(self) -> None:
        """SIGTERM."""
        self.stopping = True
        self.up = False
        if not self.faults.ignores_term and not self.frozen:
            self.later(self.nature.stop_s, lambda: self.die(Exit(code=0)))

    def die(self, exit_: Exit, *words: str, orphans: bool = False) -> None:
        """The main process ends; with ``orphans`` its children live on with their bytes."""
        if not self.alive:
            return
        self.alive = self.up = self.frozen = False
        self.exit, self.words = exit_, words
        for growth in self.growths:
            growth.over = True
        for waiter in self._waiting:
            waiter("the connection was closed without an answer")
        gone = [self.main] if orphans else list(self.procs)
        for proc in gone:
            self.world.end(proc, self.faults.lag_s)
        self.procs = [p for p in self.procs if p not in gone]
        self.world.wake()

    def kill_all(self) -> None:
        """SIGKILL to the whole cgroup."""
        self.die(Exit(signal=9))
        for proc in self.procs:
            self.world.end(proc, self.faults.lag_s)
        self.procs = []

    def lost(self, proc: Proc) -> None:
        """SIGKILL to one of its processes."""
        if proc is self.main:
            self.die(Exit(signal=9), orphans=True)
            return
        self.world.end(proc, self.faults.lag_s)
        self.procs = [one for one in self.procs if one is not proc]

    def call(
        self, ask: Callable[[Callable[[str], None]], None], done: Callable[[str], None]
    ) -> None:
        """A request to it: ``done`` once, by its answer or by its end."""
        open_ = [True]

        def once(detail: str) -> None:
            if open_[0]:
                open_[0] = False
                done(detail)

        self._waiting = [*self._waiting[-8:], once]
        ask(once)

    # -- as seen -------------------------------------------------------------------------------
    @property
    def held(self) -> int:
        """Bytes on each of its cards."""
        return sum(proc.held for proc in self.procs)

    @property
    def start_hangs(self) -> bool:
        """Whether it stands still on its way to ready, deaf to SIGTERM as well."""
        return self.faults.start_hangs and not self.up

    @property
    def serving(self) -> bool:
        """Whether it takes and finishes requests."""
        return self.alive and self.up and not self.asleep and not self.faults.hung

    @property
    def responsive(self) -> bool:
        """Whether its health URL answers."""
        return self.alive and self.up and not self.frozen and not self.faults.sick

    def unit(self, now: float) -> UnitObservation:
        """As the launcher sees it; the same object while nothing changes."""
        pids = tuple(proc.pid for proc in self.procs)
        cpu = int(self.cpu_s * 4) / 4
        key = (self.alive, pids, cpu, self.frozen, self.stopping)
        if self._unit is None or key != self._unit_key:
            self._unit_key = key
            state = UnitState.RUNNING if self.alive else UnitState.EXITED
            if self.alive and self.stopping:
                state = UnitState.STOPPING
            self._unit = UnitObservation(
                backend=self.name,
                state=state,
                since=self.began if self.alive else now,
                main=self.world.ref(self.main) if self.alive else None,
                pids=pids,
                invocation=self.invocation,
                intent=self.spec.intent,
                exit=self.exit,
                cpu_s=cpu,
                started_wall=self.began + self.world.wall_offset,
                frozen=self.frozen,
            )
        return self._unit

    def burn(self, dt: float) -> None:
        """CPU time."""
        if not self.alive or self.frozen or self.asleep:
            return
        if self.start_hangs:
            return
        if not self.up:
            self.cpu_s += CPU_BUSY * dt
        elif not self.faults.hung:
            self.cpu_s += min(CPU_BUSY, 0.2 * self.world.flows[self.name].in_flight) * dt
