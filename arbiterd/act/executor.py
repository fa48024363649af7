"""Carries actions out: intent in, outcome back.

Per device, so that a hung card cannot stop work on another, and per lane within it: what ends
something (stop, kill, thaw) takes seconds and must never wait behind a load or a sleep (minutes) or
a freeze. Three lanes with threads of their own, made on first sight of the device, are the simplest
scheme under which that holds whatever is queued: no priorities, no hand-over, nothing to prove.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import assert_never

from arbiterd.act.engine_requests import carry_out
from arbiterd.act.launch.base import Launcher
from arbiterd.aside import aside
from arbiterd.errors import ArbiterError, LaunchError
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
from arbiterd.model.health import HttpProbe
from arbiterd.secrets.values import Secrets


class Lane(StrEnum):
    """Who must not wait for whom. A freeze waits for nobody either: it is a matter of milliseconds."""

    END = "end"
    FREEZE = "freeze"
    WORK = "work"


# Three who end things: a leftover is killed while two drain for their grace. Two who work: a start
# beside a load.
THREADS = {Lane.END: 3, Lane.FREEZE: 1, Lane.WORK: 2}
QUEUE_MAX = 256
LoadProbe = Callable[[LoadModel], HttpProbe | None]


class Executor:
    """Runs actions in threads. ``on_change`` is called when an outcome is there."""

    def __init__(
        self,
        launcher: Launcher,
        load_probe: LoadProbe,
        on_change: Callable[[], None],
        *,
        dry_run: bool = False,
        secrets: Secrets | None = None,
    ) -> None:
        self._launcher = launcher
        self._secrets = secrets or Secrets({})
        self._load_probe = load_probe
        self._on_change = on_change
        self._dry_run = dry_run
        self._pools: dict[tuple[str, Lane], queue.Queue[Action | None]] = {}
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # By backend: the start or stop that was asked for last, and a lock that a start holds. A stop in
        # its own lane would else overtake the start before it, find nothing to end, and leave an engine
        # behind that nobody ends (met on a busy machine, at the end of a switch).
        self._newest: dict[str, str] = {}
        self._starts: dict[str, threading.Lock] = {}

    def prepare(self, devices: Sequence[str]) -> None:
        """Make the pools of these devices ("" is the CPU's)."""
        for uuid in devices:
            for lane, count in THREADS.items():
                if (uuid, lane) in self._pools:
                    continue
                work: queue.Queue[Action | None] = queue.Queue(QUEUE_MAX)
                self._pools[uuid, lane] = work
                for number in range(count):
                    aside(self._run, work, name=f"act-{uuid[:12] or 'cpu'}-{lane}-{number}")

    def apply(self, actions: Sequence[Action]) -> None:
        """Queue actions; a full queue is an outcome, never a wait."""
        for action in actions:
            self.prepare((action.gpu,))
            if isinstance(action, StartBackend | StopBackend):
                self._newest[action.backend] = action.id
                self._starts.setdefault(action.backend, threading.Lock())
            try:
                self._pools[action.gpu, lane_of(action)].put_nowait(action)
            except queue.Full:
                text = f"{QUEUE_MAX} actions wait already"
                self._done.put(
                    Outcome(action, ok=False, at=time.monotonic(), took_ms=0, detail=text)
                )

    def outcomes(self) -> tuple[Outcome, ...]:
        """Everything that ended since the last call."""
        out = []
        while True:
            try:
                out.append(self._done.get_nowait())
            except queue.Empty:
                return tuple(out)

    def close(self) -> None:
        """No further actions; those under way go on in daemon threads."""
        for (_, lane), work in self._pools.items():
            for _ in range(THREADS[lane]):
                with suppress(queue.Full):
                    work.put_nowait(None)

    def _run(self, work: queue.Queue[Action | None]) -> None:
        while (action := work.get()) is not None:
            began = time.monotonic()
            detail = ""
            try:
                if not self._dry_run:
                    self._do(action)
            except ArbiterError as error:
                detail = str(error)
            except Exception as error:  # noqa: BLE001 - a thread root: a bug is an outcome as well
                detail = f"bug: {type(error).__name__}: {error}"
            detail = self._secrets.redactor.text(detail)
            now = time.monotonic()
            took = (now - began) * 1000
            self._done.put(Outcome(action, ok=not detail, at=now, took_ms=took, detail=detail))
            self._on_change()

    def _do(self, action: Action) -> None:
        hide = self._secrets.redactor.text
        match action:
            case StartBackend():
                self._start(action)
            case StopBackend():
                with self._starts[action.backend]:
                    pass  # a start that is under way comes to its end; later ones give way
                self._launcher.stop(action.backend, action.grace_s)
            case KillProcesses():
                self._launcher.kill_processes(action.processes)
            case LoadModel():
                probe = self._load_probe(action)
                probes = () if probe is None else (probe,)
                carry_out(f"cannot load {action.model}", action.url, probes, hide)
            case UnloadModel():
                carry_out(f"cannot unload {action.model}", action.url, action.requests, hide)
            case SleepBackend():
                what = f"cannot put {action.backend} to sleep"
                carry_out(what, action.url, action.requests, hide)
            case WakeBackend():
                carry_out(f"cannot wake {action.backend}", action.url, action.requests, hide)
            case FreezeBackend():
                self._launcher.freeze(action.backend, action.for_s)
            case ThawBackend():
                self._launcher.thaw(action.backend)
            case MakeNodes():
                self._launcher.make_nodes(action.nodes)
            case _:
                assert_never(action)

    def _start(self, action: StartBackend) -> None:
        with self._starts[action.backend]:
            if self._newest.get(action.backend) != action.id:
                msg = f"cannot start {action.backend}: it is to stop by now"
                raise LaunchError(msg)
            self._secrets.look()  # what this start reads from env_file
            self._launcher.start(action.spec)


def lane_of(action: Action) -> Lane:
    """The lane an action runs in."""
    match action:
        case StopBackend() | KillProcesses() | ThawBackend():
            return Lane.END
        case FreezeBackend():
            return Lane.FREEZE
        case _:
            return Lane.WORK
