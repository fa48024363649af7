"""Carries actions out: intent in, outcome back. One small fixed pool per device, made on first
sight of the device, so that a hung card cannot stop work on another.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import requests

from arbiterd.act.launcher import Launcher
from arbiterd.errors import ArbiterError
from arbiterd.model.actions import (
    Action,
    KillProcesses,
    LoadModel,
    Outcome,
    StartBackend,
    StopBackend,
)
from arbiterd.model.health import HttpProbe

THREADS_PER_DEVICE = 2  # a long model load must not hold up the stop of a neighbour
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
    ) -> None:
        self._launcher = launcher
        self._load_probe = load_probe
        self._on_change = on_change
        self._dry_run = dry_run
        self._pools: dict[str, queue.Queue[Action | None]] = {}
        self._threads: list[threading.Thread] = []
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def prepare(self, devices: Sequence[str]) -> None:
        """Make the pools of these devices ("" is the CPU's)."""
        for uuid in devices:
            if uuid in self._pools:
                continue
            work: queue.Queue[Action | None] = queue.Queue(QUEUE_MAX)
            self._pools[uuid] = work
            for number in range(THREADS_PER_DEVICE):
                name = f"act-{uuid[:12] or 'cpu'}-{number}"
                thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def apply(self, actions: Sequence[Action]) -> None:
        """Queue actions; a full queue is an outcome, never a wait."""
        for action in actions:
            self.prepare((action.gpu,))
            try:
                self._pools[action.gpu].put_nowait(action)
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
        for work in self._pools.values():
            for _ in range(THREADS_PER_DEVICE):
                work.put(None)

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
            now = time.monotonic()
            took = (now - began) * 1000
            self._done.put(Outcome(action, ok=not detail, at=now, took_ms=took, detail=detail))
            self._on_change()

    def _do(self, action: Action) -> None:
        match action:
            case StartBackend():
                self._launcher.start(action.spec)
            case StopBackend():
                self._launcher.stop(action.backend, action.grace_s)
            case KillProcesses():
                self._launcher.kill_processes(action.processes)
            case LoadModel():
                self._load(action)

    def _load(self, action: LoadModel) -> None:
        probe = self._load_probe(action)
        if probe is None:
            msg = f"cannot load {action.model}: this engine loads nothing at run time"
            raise ArbiterError(msg)
        headers = {"Content-Type": "application/json", **probe.headers}
        with requests.Session() as session:
            session.trust_env = False
            try:
                reply = session.request(
                    probe.method,
                    action.url + probe.path,
                    data=probe.body,
                    headers=headers,
                    timeout=(2.0, probe.timeout_s),
                )
            except requests.RequestException as error:
                msg = f"cannot load {action.model}: {type(error).__name__}"
                raise ArbiterError(msg) from None
        if reply.status_code != requests.codes.ok:
            msg = f"cannot load {action.model}: HTTP {reply.status_code}: {reply.text[:300]}"
            raise ArbiterError(msg)
