"""An imaginary host for core: devices, units and clocks that obey the decisions. No processes.

``tick`` builds the observation, decides, and carries the actions out the way a launcher would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from arbiterd.core.decide import decide
from arbiterd.core.state import State
from arbiterd.model.actions import (
    Action,
    FreezeBackend,
    KillProcesses,
    LoadModel,
    MakeNodes,
    OperatorRequest,
    Outcome,
    SleepBackend,
    StartBackend,
    StopBackend,
    ThawBackend,
    UnloadModel,
    Verb,
    WakeBackend,
)
from arbiterd.model.backend import BackendView, Phase
from arbiterd.model.decision import Decision
from arbiterd.model.devices import (
    Device,
    DeviceObservation,
    GpuProcess,
    GpuState,
    Memory,
    ProcessRef,
    XidEvent,
)
from arbiterd.model.events import EventName
from arbiterd.model.gateway import (
    BackendWish,
    GatewayObservation,
    LoadAnswer,
    LoadAsk,
    LoadDone,
    LoadUndone,
    LoadVerdict,
    Requests,
    Traffic,
)
from arbiterd.model.health import (
    HealthObservation,
    LoadedModel,
    ProbeResult,
    Progress,
    RunnerDeath,
    Trial,
    Verdict,
)
from arbiterd.model.launch import Exit, UnitObservation, UnitState
from arbiterd.model.observation import HostFacts, Observation
from arbiterd.model.reading import Known, Unknown
from arbiterd.model.settings import (
    ArbiterSettings,
    BackendSettings,
    GatewaySettings,
    GpuRef,
    Kind,
    Mode,
    Settings,
    Share,
    Source,
)
from arbiterd.quantities import GIB, MIB

TICK_S = 0.25


def backend(name: str, kind: Kind, **over: object) -> BackendSettings:
    """A backend with everything that the file's defaults would give."""
    command = {
        Kind.VLLM: ("vllm", "serve", "M"),
        Kind.OLLAMA: ("ollama", "serve"),
        Kind.TENSORFLOW: ("tensorflow_model_server",),
        Kind.GENERIC: ("server",),
    }[kind]
    port = {"vllm": 8000, "ollama": 11434, "tensorflow": 8501}.get(name, 9000)
    made = BackendSettings(name, kind, command, port, port + 10000, start_timeout_s=60.0)
    return replace(made, **over)  # type: ignore[arg-type]


TF = backend("tensorflow", Kind.TENSORFLOW, models=("m",), priority=20)
VLLM = backend("vllm", Kind.VLLM, priority=30, stuck_after_s=30.0)
OLLAMA = backend("ollama", Kind.OLLAMA, models=("qwen2.5:3b",))


def share(name: str, percent: float | None = None, gpu: int = 0) -> Share:
    """A share of a GPU by index."""
    return Share(name, (GpuRef("index", str(gpu)),), fraction=percent)


def settings(
    modes: Mapping[str, Mode] | None = None, mode: str = "A", **arbiter: object
) -> Settings:
    """The three engines on one card, unless told otherwise."""
    shares = {n: share(n, p) for n, p in (("tensorflow", 0.2), ("vllm", 0.55), ("ollama", 0.2))}
    given = modes or {
        "A": Mode("A", shares, {"tensorflow": TF, "vllm": VLLM, "ollama": OLLAMA}),
    }
    return Settings(
        mode=mode,
        arbiter=ArbiterSettings(**arbiter),  # type: ignore[arg-type]
        gateway=GatewaySettings(),
        foreign_allow_bytes=512 * MIB,
        modes=given,
        failover=(),
        degrade=(),
        source=Source("/etc/gpu-arbiter.toml", "0", 0.0),
    )


def only(*names: str, gpu: int = 0) -> Settings:
    """One mode with some of the three."""
    every = {"tensorflow": (TF, 0.2), "vllm": (VLLM, 0.55), "ollama": (OLLAMA, 0.2)}
    shares = {n: share(n, every[n][1], gpu) for n in names}
    return settings({"A": Mode("A", shares, {n: every[n][0] for n in names})})


@dataclass
class Engine:
    """A running engine of the imaginary host."""

    name: str
    pid: int
    invocation: str
    intent: str
    uuids: tuple[str, ...]
    held: int
    alive: bool = True
    ok: bool = True
    exit: Exit | None = None
    orphans: tuple[int, ...] = ()
    running: int = 0
    work: float = 0.0
    canary_ok: bool = True
    loaded: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    ready_after: float = 0.0
    awake: int = 0
    stopping_by_hand: bool = False


@dataclass
class World:
    """See the module. ``fail_starts``: names whose start action fails; ``slow``: seconds that a
    start takes; ``lag_s``: how long dead memory stays unattributed.
    """

    settings: Settings
    gpus: int = 1
    total: int = 24 * GIB
    now: float = 1000.0
    state: State = field(default_factory=lambda: State(run="t"))
    engines: dict[str, Engine] = field(default_factory=dict)
    strangers: dict[int, tuple[str, int]] = field(default_factory=dict)
    ghosts: list[tuple[float, str, int]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    requests: list[OperatorRequest] = field(default_factory=list)
    events: list[tuple[EventName, str]] = field(default_factory=list)
    host: HostFacts = HostFacts()
    fail_nodes: str = ""
    fail_starts: dict[str, str] = field(default_factory=dict)
    start_s: float = 1.0
    lag_s: float = 0.0
    blind: str = ""
    lost: set[int] = field(default_factory=set)
    stopping: bool = False
    next_pid: int = 100
    seq: int = 0
    stopped: list[str] = field(default_factory=list)
    decision: Decision | None = None
    crash_on_start: dict[str, tuple[Exit, str]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    asks: list[LoadAsk] = field(default_factory=list)
    dones: list[LoadDone] = field(default_factory=list)
    undones: list[LoadUndone] = field(default_factory=list)
    list_age_s: float = 0.0  # how old the lists of resident models are
    gateway_problem: str = ""
    gate_problem: str = ""
    looked: bool = True
    ways: dict[str, str] = field(default_factory=dict)
    no_canary: dict[str, str] = field(default_factory=dict)
    canary_moves: int = 0
    trial: Trial | None = None
    deaths: list[tuple[str, RunnerDeath]] = field(default_factory=list)
    unknown_hosts: frozenset[str] = frozenset()
    unloads: list[str] = field(default_factory=list)
    unload_ignored: bool = False
    frozen: list[str] = field(default_factory=list)
    can_freeze: bool = True
    unseen_s: float = 0.0
    ordered: list[Action] = field(default_factory=list)
    sleep_frees: bool = True
    host_oom: set[str] = field(default_factory=set)
    unkillable: set[str] = field(default_factory=set)
    codes: dict[str, Requests] = field(default_factory=dict)
    xids: list[XidEvent] = field(default_factory=list)
    recovery: int = 0
    load_hangs: bool = False  # a warm load never ends
    load_fails: str = ""  # why it fails

    def device(self, index: int = 0) -> Device:
        """A card of this host."""
        return Device(
            f"GPU-{index}",
            index,
            "NVIDIA GeForce RTX 4090",
            f"0{index}",
            self.total,
            400 * MIB,
            nodes=(f"/dev/nvidia{index}",),
        )

    def used(self, uuid: str) -> int:
        """Bytes held on a card by anybody, ghosts included."""
        mine = sum(
            e.held for e in self.engines.values() if uuid in e.uuids and (e.alive or e.orphans)
        )
        theirs = sum(size for where, size in self.strangers.values() if where == uuid)
        return mine + theirs + sum(size for until, where, size in self.ghosts if where == uuid)

    def _processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        out = []
        for engine in self.engines.values():
            if uuid not in engine.uuids:
                continue
            pid = engine.pid if engine.alive else next(iter(engine.orphans), 0)
            if pid:
                used = Known(engine.held, self.now)
                out.append(GpuProcess(pid, ProcessRef(pid, 1), used, engine.name, "unit"))
        for pid, (where, size) in self.strangers.items():
            if where == uuid:
                out.append(
                    GpuProcess(
                        pid,
                        ProcessRef(pid, 1),
                        Known(size, self.now),
                        "",
                        "x.service",
                        "bob",
                        "python",
                    )
                )
        return tuple(out)

    def _device(self, index: int) -> DeviceObservation:
        device = self.device(index)
        if self.blind or index in self.lost:
            state = GpuState.HUNG if self.blind else GpuState.LOST
            unknown = Unknown(self.blind or "gone", self.now)
            return DeviceObservation(device, state, unknown, unknown, self.blind or "gone")
        used = self.used(device.uuid)
        free = device.capacity_bytes - used
        memory = Known(Memory(self.total, device.reserved_bytes, used, free), self.now)
        processes = Known(self._processes(device.uuid), self.now)
        return DeviceObservation(
            device, GpuState.OK, memory, processes, recovery_action=self.recovery
        )

    def _units(self) -> dict[str, UnitObservation]:
        out = {}
        for name, engine in self.engines.items():
            pids = (engine.pid,) if engine.alive else engine.orphans
            state = UnitState.STOPPING if engine.stopping_by_hand else UnitState.RUNNING
            out[name] = UnitObservation(
                backend=name,
                state=state if engine.alive else UnitState.EXITED,
                since=self.now,
                main=ProcessRef(engine.pid, 1),
                pids=pids,
                invocation=engine.invocation,
                intent=engine.intent,
                exit=engine.exit,
                host_oom=name in self.host_oom and not engine.alive,
            )
        return out

    def _health(self) -> dict[str, HealthObservation]:
        out = {}
        for probe in self.decision.probes if self.decision else ():
            engine = self.engines.get(probe.backend)
            if engine is None or not engine.alive:
                continue
            self.seq += 1
            up = self.now >= engine.ready_after
            alive = ProbeResult(
                self.seq, Verdict(engine.ok and up, "" if engine.ok else "HTTP 503"), 1.0
            )
            unknown = Unknown("not asked", self.now)
            canary: Known[ProbeResult] | Unknown = unknown
            if probe.canary_due:
                self.seq += 1
                canary = Known(
                    ProbeResult(self.seq, Verdict(engine.canary_ok, "timeout"), 5.0), self.now
                )
            models = tuple(
                LoadedModel(m, 2 * GIB, 2 * GIB, also=engine.also) for m in engine.loaded
            )
            out[probe.backend] = HealthObservation(
                backend=probe.backend,
                alive=Known(alive, self.now),
                canary=canary,
                progress=unknown
                if probe.backend in ("ollama", "tensorflow")
                else Known(Progress(engine.running, 0, engine.work), self.now),
                loaded=Known(models, self.now - self.list_age_s),
                door=self._way(probe.backend),
                trial=self._trial(probe.trial),
            )
        return out

    def _way(self, name: str) -> Known[ProbeResult] | Unknown | None:
        """``ways``: what each second probe says ("" for good, "?" for not yet); no key: no doors."""
        said = self.ways.get(name)
        if said is None or said == "?":
            return None if said is None else Unknown("not probed yet", 0.0)
        self.seq += 1
        return Known(ProbeResult(self.seq, Verdict(not said, said), 1.0), self.now)

    def _trial(self, model: str) -> Trial | None:
        """``no_canary``: why a model's is none."""
        if not model or (self.trial and self.trial.model == model):
            return self.trial
        why = self.no_canary.get(model, "")
        if not why and self.canary_moves:
            self.engines["tensorflow"].held += self.canary_moves
        self.trial = Trial(model, not why, why, self.now)
        return self.trial

    def observation(self) -> Observation:
        """What this moment shows."""
        return Observation(
            now=self.now,
            wall=self.now + 1e9,
            jitter=0.5,
            devices={self.device(i).uuid: self._device(i) for i in range(self.gpus)},
            nvml=self.blind,
            units=self._units(),
            health=self._health(),
            host=self.host,
            outcomes=tuple(self.outcomes),
            requests=tuple(self.requests),
            logs={n: e.words for n, e in self.engines.items() if not e.alive},
            stopping=self.stopping,
            gateway=GatewayObservation(
                enabled=True,
                problem=self.gateway_problem,
                gate_problem=self.gate_problem,
                looked=self.looked,
                traffic={n: Known(t, self.now) for n, t in self.traffic.items()},
                requests=dict(self.codes),
                unknown_hosts=self.unknown_hosts,
            ),
            load_asks=tuple(self.asks),
            load_dones=tuple(self.dones),
            load_undones=tuple(self.undones),
            can_freeze=self.can_freeze,
            unseen_s=self.unseen_s,
            xids=tuple(self.xids),
            deaths=tuple(self.deaths),
        )

    def tick(self, count: int = 1, dt: float = TICK_S) -> Decision:
        """So many ticks; returns the last decision."""
        for _ in range(count):
            self.now += dt
            self.ghosts = [g for g in self.ghosts if g[0] > self.now]
            seen = self.observation()
            self.outcomes, self.requests, self.dones, self.xids = [], [], [], []
            self.undones = []
            self.deaths = []
            self.decision, self.state = decide(seen, self.state, self.settings)
            self.events += [(e.name, e.backend) for e in self.decision.events]
            settled = {a.id for a in self.decision.loads if a.verdict is not LoadVerdict.WAIT}
            self.asks = [a for a in self.asks if a.id not in settled]
            self.ordered += self.decision.actions
            for action in self.decision.actions:
                self._obey(action)
        assert self.decision is not None
        return self.decision

    def _obey(self, action: Action) -> None:
        ok, detail = True, ""
        match action:
            case StartBackend():
                ok, detail = self._start(action)
            case StopBackend() if action.backend in self.unkillable:
                self.stopped.append(action.backend)
                ok, detail = False, "its processes are still there"
            case StopBackend():
                self.stopped.append(action.backend)
                self._end(action.backend)
            case KillProcesses():
                engine = self.engines.get(action.backend)
                if engine is not None and engine.alive:  # a runner alone: its engine goes on
                    engine.loaded, engine.held = (), 0
                else:
                    self._end(action.backend)
            case LoadModel() if self.load_hangs:
                return
            case LoadModel() if self.load_fails:
                ok, detail = False, self.load_fails
            case LoadModel():
                self.loads.append(action.model)
                engine = self.engines[action.backend]
                engine.loaded = (action.model,)
                engine.held += 2 * GIB
            case UnloadModel():
                self.unloads.append(action.model)
                engine = self.engines[action.backend]
                if not self.unload_ignored:
                    engine.held = max(0, engine.held - 2 * GIB)
                    engine.loaded = tuple(m for m in engine.loaded if m != action.model)
            case SleepBackend():
                engine = self.engines[action.backend]
                assert action.requests, "an engine that cannot sleep was told to"
                engine.awake, engine.held = engine.held, GIB if self.sleep_frees else engine.held
            case WakeBackend():
                engine = self.engines[action.backend]
                engine.held = engine.awake
            case FreezeBackend():
                self.frozen.append(action.backend)
            case ThawBackend():
                pass
            case MakeNodes():
                ok, detail = not self.fail_nodes, self.fail_nodes
        self.outcomes.append(Outcome(action, ok, self.now, 10.0, detail))

    def _start(self, action: StartBackend) -> tuple[bool, str]:
        name = action.backend
        if name in self.fail_starts:
            return False, self.fail_starts[name]
        self.next_pid += 1
        view = self.view(name)
        held = 0 if name == "ollama" else view.cap_bytes - 100 * MIB
        engine = Engine(
            name,
            self.next_pid,
            f"inv{self.next_pid}",
            action.spec.intent,
            view.devices,
            max(0, held),
        )
        engine.ready_after = self.now + self.start_s
        if name in self.crash_on_start:
            engine.alive, engine.held = False, 0
            engine.exit, word = self.crash_on_start[name]
            engine.words = (word,)
        self.engines[name] = engine
        return True, ""

    def _end(self, name: str) -> None:
        engine = self.engines.pop(name, None)
        if engine is not None and self.lag_s and engine.held:
            self.ghosts += [(self.now + self.lag_s, uuid, engine.held) for uuid in engine.uuids]

    # -- what tests say ------------------------------------------------------------------------
    def view(self, name: str) -> BackendView:
        """A backend as published."""
        assert self.decision is not None
        return self.decision.backends[name]

    def phase(self, name: str) -> Phase:
        """Its phase."""
        return self.view(name).phase

    def until(self, name: str, *phases: Phase, ticks: int = 400) -> None:
        """Tick until a backend is in one of these phases."""
        for _ in range(ticks):
            self.tick()
            if self.phase(name) in phases:
                return
        msg = f"{name} never got to {phases}; it is {self.phase(name)}: {self.view(name).reason}"
        raise AssertionError(msg)

    def up(self) -> World:
        """Everything ready."""
        for name in self.settings.active.shares:
            self.until(name, Phase.READY)
        self.tick(8)
        return self

    def die(self, name: str, exit_: Exit, *words: str, orphan: bool = False) -> None:
        """The main process ends by itself."""
        engine = self.engines[name]
        engine.alive, engine.exit, engine.words = False, exit_, words
        if orphan:
            engine.orphans = (engine.pid + 5000,)

    def ask(self, verb: Verb, name: str = "") -> None:
        """An operator's request."""
        self.requests.append(OperatorRequest("r", verb, name, "uid 0 (root)"))

    def door(self, name: str) -> BackendWish:
        """What the doors shall do for a backend."""
        assert self.decision is not None
        return self.decision.gateway.backends[name]

    def ask_load(
        self,
        model: str,
        size: int,
        name: str = "ollama",
        shares: tuple[str, ...] = (),
    ) -> LoadAnswer:
        """The load gate asks; the answer of one tick. A question that waits stays."""
        ask = next((a for a in self.asks if a.model == model), None)
        if ask is None:
            number = f"load-{model}-{self.seq}"
            ask = LoadAsk(number, name, model, size, self.now, shares)
            self.asks.append(ask)
        self.tick()
        assert self.decision is not None
        return next(one for one in self.decision.loads if one.id == ask.id)

    def told(self, name: EventName, backend_: str = "") -> int:
        """How often an event was told."""
        return sum(1 for event, who in self.events if event is name and backend_ in ("", who))

    def switch(self, mode: str) -> None:
        """A reload with another mode line."""
        self.settings = dataclasses.replace(self.settings, mode=mode)
