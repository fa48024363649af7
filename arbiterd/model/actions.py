"""Intents that core decides and act carries out, and their outcomes.

Every action has an id; its outcome comes back as an observation with the same id (design, 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from arbiterd.model.devices import ProcessRef
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


Action: TypeAlias = StartBackend | StopBackend | KillProcesses | LoadModel


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


@dataclass(frozen=True, slots=True)
class OperatorRequest:
    """One accepted operator request. ``by``: 'uid 0 (root)', for the journal."""

    id: str
    verb: Verb
    backend: str
    by: str
