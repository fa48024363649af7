"""Carries decisions out with the time it takes: per card three lanes, as in act/executor.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from arbiterd.act.executor import THREADS, Lane, lane_of
from arbiterd.model.actions import (
    Action,
    FreezeBackend,
    KillProcesses,
    LoadModel,
    MakeNodes,
    Outcome,
    SleepBackend,
    StartBackend,
    StopBackend,
    ThawBackend,
    UnloadModel,
    WakeBackend,
)
from arbiterd.model.launch import Exit
from tests.world.kinds import KINDS

if TYPE_CHECKING:
    from tests.world.engine import Engine
    from tests.world.world import World

START_S = 0.05
KILL_S = 0.02
HTTP_S = 0.02
THAW_S = 0.01
Done = Callable[[str], None]


class Acts:
    """``outcomes`` are those since the last tick. A restart of the daemon loses them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[tuple[str, Lane], int] = {}
        self._queues: dict[tuple[str, Lane], deque[Action]] = {}
        self._epoch = 0
        self.outcomes: list[Outcome] = []

    def apply(self, actions: tuple[Action, ...]) -> None:
        """Begin what a thread is free for."""
        for action in actions:
            self._world.monitor.ordered(action)
            lane = (action.gpu, lane_of(action))
            if self._running.get(lane, 0) >= THREADS[lane[1]]:
                self._queues.setdefault(lane, deque()).append(action)
            else:
                self._begin(action)

    def forget(self) -> None:
        """The daemon ends: nobody waits for outcomes any more. What engines were told, they do."""
        self._epoch += 1
        self.outcomes = []
        self._queues.clear()
        self._running.clear()

    def _begin(self, action: Action) -> None:
        lane = (action.gpu, lane_of(action))
        self._running[lane] = self._running.get(lane, 0) + 1
        epoch, began = self._epoch, self._world.now

        def done(detail: str) -> None:
            """The outcome comes in by the queue, unless the daemon has been restarted since."""
            if epoch != self._epoch:
                return
            now = self._world.now
            outcome = Outcome(action, not detail, now, (now - began) * 1000, detail)
            self.outcomes.append(outcome)
            self._world.monitor.ended(outcome)
            self._running[lane] -= 1
            queue = self._queues.get(lane)
            if queue:
                self._begin(queue.popleft())
            self._world.wake()

        self._do(action, done)

    def _do(self, action: Action, done: Done) -> None:
        world = self._world
        match action:
            case StartBackend():
                world.at(START_S, lambda: self._start(action, done))
            case StopBackend():
                self._stop(action.backend, action.grace_s, done)
            case KillProcesses():
                world.at(KILL_S, lambda: self._kill(action, done))
            case LoadModel():
                self._load(action, done)
            case FreezeBackend():
                self._freeze(action.backend, action.for_s, done)
            case ThawBackend():
                world.at(THAW_S, lambda: self._thaw(action.backend, done))
            case MakeNodes():
                done("")
            case UnloadModel() | SleepBackend() | WakeBackend():
                self._ask(action, done)

    def _start(self, action: StartBackend, done: Done) -> None:
        world, name = self._world, action.backend
        if name in world.engines:
            done("cannot start: it is there already")
            return
        if name in world.fail_starts:
            done(world.fail_starts[name])
            return
        settings = world.settings.active.backends[name]
        engine = KINDS[settings.kind](world, settings, world.placement(name), action.spec)
        world.engines[name] = engine
        done("")
        fault = engine.faults
        fault.hung = fault.sick = False  # a fresh process
        if fault.crash_start is not None and fault.crashes_left > 0:
            fault.crashes_left -= 1
            exit_, words = fault.crash_start
            engine.later(engine.nature.start_s / 2, lambda: engine.die(exit_, words))
        engine.start()

    def _stop(self, name: str, grace_s: float, done: Done) -> None:
        """TERM, KILL to the cgroup after the grace, then the unit is forgotten."""
        world = self._world
        engine = world.engines.get(name)
        if engine is None:
            done("")
            return
        if engine.alive and grace_s > 0:
            engine.term()
        deadline = world.now + grace_s

        def look() -> None:
            if engine.alive and world.now < deadline:
                world.at(0.05, look)
                return
            engine.kill_all()
            if world.engines.get(name) is engine:
                del world.engines[name]
            done("")

        world.at(KILL_S, look)

    def _kill(self, action: KillProcesses, done: Done) -> None:
        for ref in action.processes:
            proc = self._world.pids.get(ref.pid)
            if proc is None or proc.start_time != ref.start_time:
                continue
            if proc.holder:
                self._world.killed(proc)
            else:
                self._world.monitor.foreign_signals += 1
        done("")

    def _load(self, action: LoadModel, done: Done) -> None:
        engine = self._world.engines.get(action.backend)
        if engine is None or not engine.responsive:
            self._world.at(HTTP_S, lambda: done(f"cannot load {action.model}: refused"))
            return
        self._world.until_answered(
            engine, lambda reply: engine.load(action.model, action.keep_alive_s, reply), done
        )

    def _ask(self, action: UnloadModel | SleepBackend | WakeBackend, done: Done) -> None:
        engine = self._world.engines.get(action.backend)
        if engine is None or not engine.responsive or engine.faults.hung:
            self._world.at(HTTP_S, lambda: done("refused"))
            return
        if isinstance(action, UnloadModel):
            engine.unload(action.model)
            self._world.at(HTTP_S, lambda: done(""))
            return
        verb = engine.sleep if isinstance(action, SleepBackend) else engine.wake
        self._world.until_answered(engine, verb, done)

    def _freeze(self, name: str, for_s: float, done: Done) -> None:
        engine = self._world.engines.get(name)
        if engine is None or not engine.alive:
            done("no unit")
            return
        engine.frozen = True

        def thaw() -> None:  # by the timer outside of the daemon
            _thawed(engine)
            done("")

        self._world.at(for_s, thaw)

    def _thaw(self, name: str, done: Done) -> None:
        engine = self._world.engines.get(name)
        if engine is not None:
            _thawed(engine)
        done("")


def _thawed(engine: Engine) -> None:
    if engine.frozen:
        engine.frozen = False
        if engine.stopping:
            engine.later(engine.nature.stop_s, lambda: engine.die(Exit(code=0)))
