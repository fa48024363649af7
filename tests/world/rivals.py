"""What our policy is compared with: no arbiter at all, a threshold killer, and an oracle.

All three are plain supervisors first: backends are started one after the other with the same launch
lines as ours, restarted a second after they end, and Ollama's first model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arbiterd.core.backend.planning import engine_url, launch_context, launch_spec
from arbiterd.core.memory.placement import place
from arbiterd.engines import engine_of
from arbiterd.model.actions import (
    Action,
    KillProcesses,
    LoadModel,
    StartBackend,
    StopBackend,
)
from arbiterd.model.decision import Decision
from arbiterd.model.devices import GpuProcess
from arbiterd.model.health import ProbeOrder
from arbiterd.model.launch import ABSENT, UnitState
from arbiterd.model.observation import Observation
from arbiterd.model.reading import Known
from arbiterd.model.settings import Settings

if TYPE_CHECKING:
    from tests.world.world import World

RESTART_S = 1.0  # systemd's RestartSec=1
LIMIT = 0.95  # of the card: what scripts of this kind use
PAUSE_S = 5.0  # after a kill: its bytes must be back before the next look


class Plain:
    """No arbiter: systemd's Restart=always, and nothing more."""

    def __init__(self) -> None:
        self._count = 0
        self._pending: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._warm: set[str] = set()

    def decide(self, observation: Observation, settings: Settings) -> Decision:
        """Keep them running."""
        actions = [*self._supervise(observation, settings), *self.watch(observation, settings)]
        return Decision(
            actions=tuple(actions),
            events=(),
            probes=_probes(observation, settings),
            backends={},
            devices={},
            incidents=(),
            blind=False,
            settled=False,
            lists_soon=True,
        )

    def restart(self) -> None:
        """It has no state that matters."""
        self._pending.clear()

    def watch(self, observation: Observation, settings: Settings) -> list[Action]:
        """What a rival does beyond supervising."""
        del observation, settings
        return []

    def next_id(self) -> str:
        """Of an action."""
        self._count += 1
        return f"plain-{self._count}"

    def _supervise(self, seen: Observation, settings: Settings) -> list[Action]:
        for outcome in seen.outcomes:
            name = outcome.action.backend
            self._pending.discard(name)
            if isinstance(outcome.action, StopBackend):
                self._not_before[name] = seen.now + RESTART_S
                self._warm.discard(name)
        devices = {uuid: one.device for uuid, one in seen.devices.items()}
        headroom = settings.arbiter.headroom_bytes
        places = place(settings.active, list(devices.values()), headroom)
        out: list[Action] = []
        active = settings.active.backends
        order = sorted(active, key=lambda name: (engine_of(active[name].kind).start_rank, name))
        earlier_ready = True
        for name in order:
            unit, wanted = seen.units.get(name, ABSENT), active[name]
            health = seen.health.get(name)
            gpu = next(iter(places[name].devices), "")
            up = bool(health and isinstance(health.alive, Known) and health.alive.value.verdict.ok)
            if name in self._pending:
                pass
            elif unit.state is UnitState.EXITED:
                self._not_before[name] = seen.now + RESTART_S
                self._warm.discard(name)
                out.append(StopBackend(self.next_id(), name, gpu, "it ended", 0.0))
            elif unit.state is UnitState.ABSENT:
                if earlier_ready and seen.now >= self._not_before.get(name, 0.0):
                    context = launch_context(settings, name, places, devices)
                    spec = launch_spec(context)
                    out.append(StartBackend(self.next_id(), name, gpu, "restart", spec))
            elif (
                up
                and name not in self._warm
                and (model := engine_of(wanted.kind).warm_model(wanted))
            ):
                self._warm.add(name)
                url = engine_url(settings, wanted)
                out.append(LoadModel(self.next_id(), name, gpu, "first", url, model, -1.0, 60.0))
            earlier_ready = earlier_ready and (up or name in self._not_before)
        self._pending |= {one.backend for one in out}
        return out


class Threshold(Plain):
    """Kills whoever holds most once more than LIMIT of a card is used: the script one finds."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = -1.0

    def watch(self, observation: Observation, settings: Settings) -> list[Action]:
        """Look at each card."""
        del settings
        for uuid, seen in observation.devices.items():
            if not isinstance(seen.memory, Known) or not isinstance(seen.processes, Known):
                continue
            used, whole = seen.memory.value.used_bytes, seen.device.capacity_bytes
            if used <= LIMIT * whole or observation.now < self._quiet_until:
                continue
            largest = max(seen.processes.value, key=_size, default=None)
            if largest is None or largest.ref is None:
                continue
            self._quiet_until = observation.now + PAUSE_S
            reason = f"{used / whole:.0%} of the card is used"
            if largest.holder:
                return [StopBackend(self.next_id(), largest.holder, uuid, reason, 0.0)]
            return [KillProcesses(self.next_id(), "", uuid, reason, (largest.ref,))]
        return []


class Oracle(Plain):
    """Knows the truth: at the first sample in which a card is critical it ends who is furthest over its
    cap. An OOM that it does not avoid was no longer avoidable by then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    def watch(self, observation: Observation, settings: Settings) -> list[Action]:
        """Look at each card."""
        del settings
        world = self.world
        if world is None:
            return []
        for uuid, seen in observation.devices.items():
            if not isinstance(seen.memory, Known):
                continue
            if seen.memory.value.free_bytes >= world.monitor.critical_line(uuid):
                continue
            guilty = [
                engine
                for name, engine in world.engines.items()
                if engine.alive and engine.held > engine.cap and name not in self._pending
            ]
            if guilty:
                worst = max(guilty, key=lambda one: one.held - one.cap)
                self._pending.add(worst.name)
                return [StopBackend(self.next_id(), worst.name, uuid, "guilty", 0.0)]
        return []


def _size(process: GpuProcess) -> int:
    return process.used_bytes.value if isinstance(process.used_bytes, Known) else 0


def _probes(seen: Observation, settings: Settings) -> tuple[ProbeOrder, ...]:
    return tuple(
        ProbeOrder(
            name, engine_url(settings, settings.active.backends[name]), unit.invocation, True, False
        )
        for name, unit in seen.units.items()
        if unit.state is UnitState.RUNNING and name in settings.active.backends
    )
