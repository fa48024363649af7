"""Everything one tick knows: core's only input besides its own state and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiterd.model.actions import OperatorRequest, Outcome
from arbiterd.model.devices import DeviceObservation, XidEvent
from arbiterd.model.gateway import GatewayObservation, LoadAsk, LoadDone, LoadUndone
from arbiterd.model.health import HealthObservation, RunnerDeath
from arbiterd.model.launch import UnitObservation


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Slow facts of the host, refreshed outside the tick: engine versions (found without importing
    the engine), the client (docker, podman) that runs a backend's image, commands that cannot be
    found, ports held by somebody else. ``looked``: False until the first look has ended; nothing
    starts before. ``driver``: NVIDIA's kernel driver is there, and units have a sandbox; ``nodes``: device
    nodes of GPUs that are there then. ``ram_free_bytes``: what the host can still give without
    swapping, 0 while not known.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    containers: Mapping[str, str] = field(default_factory=dict)
    missing_commands: Mapping[str, str] = field(default_factory=dict)
    taken_ports: Mapping[str, str] = field(default_factory=dict)
    looked: bool = True
    ram_free_bytes: int = 0
    driver: bool = False
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Observation:
    """One whole snapshot.

    ``now``: monotonic seconds. ``wall``: epoch seconds, for display only. ``jitter``: 0 <= j < 1,
    drawn anew each tick. ``devices``: every device NVML ever listed, lost ones included, by uuid.
    ``nvml``: "" while NVML answers, else why not ("late", "hung for 5.2 s", "library missing ...").
    ``xids``: those that came since the last tick, each once. ``deaths``: runners of running engines
    (backend, death), likewise.
    ``stopping``: the host or the daemon is on its way down. ``can_freeze``: the launcher can freeze.
    ``settings_queued``: a newer accepted file waits for the end of the switch under way;
    ``queued_mode``: its mode. ``unwritten``: files of ours that cannot be written, and why, each a
    sentence. ``unseen_s``: how long the loop itself was held up before this tick, 0 for not.
    """

    now: float
    wall: float
    jitter: float
    devices: Mapping[str, DeviceObservation]
    nvml: str
    units: Mapping[str, UnitObservation]
    health: Mapping[str, HealthObservation]
    host: HostFacts
    outcomes: tuple[Outcome, ...] = ()
    requests: tuple[OperatorRequest, ...] = ()
    logs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stopping: bool = False
    gateway: GatewayObservation = GatewayObservation()
    load_asks: tuple[LoadAsk, ...] = ()
    load_dones: tuple[LoadDone, ...] = ()
    load_undones: tuple[LoadUndone, ...] = ()
    can_freeze: bool = False
    settings_queued: bool = False
    queued_mode: str = ""
    xids: tuple[XidEvent, ...] = ()
    deaths: tuple[tuple[str, RunnerDeath], ...] = ()
    unwritten: tuple[str, ...] = ()
    unseen_s: float = 0.0
