"""What core decides in one tick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arbiterd.model.actions import Action
from arbiterd.model.backend import BackendView, DeviceView
from arbiterd.model.events import Event, Incident
from arbiterd.model.gateway import GatewayWish, LoadAnswer
from arbiterd.model.health import ProbeOrder
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Settings
from arbiterd.model.switch import SwitchResult, SwitchView


@dataclass(frozen=True, slots=True)
class Decision:
    """Actions to take, events to log, what to probe, and the view to publish.

    ``backends`` and ``devices`` keep the order of the file and of the inventory. ``incidents``:
    newest first, open ones and the last closed ones. ``blind``: any device without a fresh sample.
    ``learned``: what OOMs have taught, to be kept. ``lists_soon``: process lists with each sample.
    ``switch``: the one under way; ``last_switch``: what came of the last. ``times``: (start, stop) that
    each backend took, seconds, those of other modes too. ``back_to``: settings that are in force again
    from the next tick. ``settled``: nothing in flight and every backend stopped (a stop job may end).
    """

    actions: tuple[Action, ...]
    events: tuple[Event, ...]
    probes: tuple[ProbeOrder, ...]
    backends: Mapping[str, BackendView]
    devices: Mapping[str, DeviceView]
    incidents: tuple[Incident, ...]
    blind: bool
    settled: bool
    gateway: GatewayWish = GatewayWish()
    loads: tuple[LoadAnswer, ...] = ()
    learned: Mapping[str, LearnedCap] = field(default_factory=dict)
    lists_soon: bool = False
    switch: SwitchView | None = None
    last_switch: SwitchResult | None = None
    times: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    back_to: Settings | None = None
