"""Intents that core decides and act carries out, and their outcomes.

Every action has an id; its outcome comes back as an observation with the same id (design, 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from arbiterd.model.devices import ProcessRef
from arbiterd.model.health import HttpProbe
from arbiterd.model.launch import LaunchSpec


@dataclass(frozen=True, slots=True)
class StartBackend:
    """Start the unit. The outcome says the process runs, not that the engine is ready."""

    id: str
    backend: str
    gpu: str
    reason: str
    spec: LaunchSpec


@dataclass(frozen=True, slots=True)
class StopBackend:
    """SIGTERM to the main process, ``grace_s`` later SIGKILL to the whole cgroup, wait until it is
    empty, forget the unit. ``grace_s`` 0: SIGKILL at once. Succeeds when nothing is left.
    """

    id: str
    backend: str
    gpu: str
    reason: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class KillProcesses:
    """SIGKILL to leftovers of ours, by identity, checked again right before the signal."""

    id: str
    backend: str
    gpu: str
    reason: str
    processes: tuple[ProcessRef, ...]


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Ask an engine to load a model and keep it ``keep_alive_s`` seconds (negative: for ever)."""

    id: str
    backend: str
    gpu: str
    reason: str
    url: str
    model: str
    keep_alive_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Ask an engine to give a model's memory back (``requests``, in order). The engine does so when it
    pleases: the outcome says that it has heard, /api/ps and NVML say whether the bytes are back.
    """

    id: str
    backend: str
    gpu: str
    reason: str
    url: str
    model: str
    requests: tuple[HttpProbe, ...]


@dataclass(frozen=True, slots=True)
class SleepBackend:
    """Pause the engine, then put it to sleep (``requests``, in order; the first failure ends it).
    A sleep that failed leaves the engine in no known state: it must be restarted (facts/engines.md).
    """

    id: str
    backend: str
    gpu: str
    reason: str
    url: str
    requests: tuple[HttpProbe, ...]


@dataclass(frozen=True, slots=True)
class WakeBackend:
    """Wake the engine and let it go on (``requests``, in order). Whether it computes is for a canary."""

    id: str
    backend: str
    gpu: str
    reason: str
    url: str
    requests: tuple[HttpProbe, ...]


@dataclass(frozen=True, slots=True)
class FreezeBackend:
    """Freeze the whole cgroup for ``for_s`` seconds. What thaws it is armed before, outside of the
    daemon; the outcome comes after the thaw.
    """

    id: str
    backend: str
    gpu: str
    reason: str
    for_s: float


@dataclass(frozen=True, slots=True)
class ThawBackend:
    """Thaw the cgroup now: before a stop, and at adoption. Thawing what is not frozen is fine."""

    id: str
    backend: str
    gpu: str
    reason: str


@dataclass(frozen=True, slots=True)
class MakeNodes:
    """Ask NVIDIA's own program to make these device nodes, before a start that could not open them
    later. Making what is there is fine.
    """

    id: str
    backend: str
    gpu: str
    reason: str
    nodes: tuple[str, ...]


Action: TypeAlias = (
    StartBackend
    | StopBackend
    | KillProcesses
    | LoadModel
    | UnloadModel
    | SleepBackend
    | WakeBackend
    | FreezeBackend
    | ThawBackend
    | MakeNodes
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an action ended. ``at`` is monotonic seconds, ``detail`` one sentence when not ok."""

    action: Action
    ok: bool
    at: float
    took_ms: float
    detail: str = ""


class Verb(StrEnum):
    """What an operator may ask for through the admin socket."""

    DRAIN = "drain"
    RESUME = "resume"
    RESTART = "restart"
    STOP_ALL = "stop-all"
    SLEEP = "sleep"
    WAKE = "wake"
    RESET_CAP = "reset-cap"


@dataclass(frozen=True, slots=True)
class OperatorRequest:
    """One accepted operator request. ``by``: 'uid 0 (root)', for the journal."""

    id: str
    verb: Verb
    backend: str
    by: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an operator's request is not taken: nobody of that name, or not in this state."""

    code: Literal["not_found", "conflict"]
    text: str
