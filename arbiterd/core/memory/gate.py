"""The start gate: one memory event at a time per device, in order, each to readiness.

vLLM compares free memory before and after its profiling; a neighbour that frees meanwhile crashes
it, one that allocates silently shrinks its cache (facts/engines.md). So starts, releases and model
loads on a device never overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from arbiterd.core.backend import nodes
from arbiterd.core.backend.backend_axes import SleepStage
from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.backend.planning import launch_context, launch_spec
from arbiterd.core.backend.progress import why_hung
from arbiterd.core.facts import Facts
from arbiterd.core.limits import (
    COLD_START_BYTES,
    FIRST_START_GUESS_S,
    FRESH_SAMPLES,
    PORT_LOST_AFTER_S,
    TIGHT_LOAD_MARGIN,
)
from arbiterd.core.memory import pressure
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.pressure import critical_free_bytes
from arbiterd.core.notes import Notes, Order
from arbiterd.engines import engine_of
from arbiterd.engines.base import LaunchContext
from arbiterd.model import strangers
from arbiterd.model.actions import MakeNodes
from arbiterd.model.backend import Phase
from arbiterd.model.devices import DeviceObservation, GpuProcess, GpuState, Pressure
from arbiterd.model.reading import Known
from arbiterd.quantities import format_size

ROOM = "room"
ORDER = "order"
BLIND = "blind"
HOST = "host"
NODES = "nodes"
TOLD = (ROOM, HOST, BLIND, NODES)  # a long wait of these kinds is an incident


class Blocked(str):
    """Why a start waits, in one sentence; ``kind`` is ROOM, ORDER, BLIND, HOST or NODES."""

    __slots__ = ("kind",)
    kind: str

    def __new__(cls, text: str, kind: str) -> Self:
        """Make the sentence."""
        self = super().__new__(cls, text)
        self.kind = kind
        return self


class Doing(StrEnum):
    """What takes or gives memory, as a sentence says it."""

    STARTING = "is starting"
    RELEASING = "is giving its memory back"
    LOADING = "is loading a model"
    SLEEPING = "is falling asleep"
    WAKING = "is waking"


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """The one on a device: no other may begin beside it."""

    backend: str
    doing: Doing

    def __str__(self) -> str:
        return f"{self.backend} {self.doing}"


_SLEEP_DOING = {SleepStage.FALLING: Doing.SLEEPING, SleepStage.WAKING: Doing.WAKING}


def memory_event(facts: Facts, uuid: str, but: str) -> MemoryEvent | None:
    """The memory event under way on a device. One that hangs holds nobody up; its bytes stay booked
    (``_room``).
    """
    for now in facts.backends.values():
        other = facts.moved.get(now.name, now)
        if other.name == but or not _on(facts, other, uuid) or why_hung(other):
            continue
        doing = moves(other) or (Doing.LOADING if loading(facts, other.name) else None)
        if doing is not None:
            return MemoryEvent(other.name, doing)
    return None


def moves(backend: BackendState) -> Doing | None:
    """Its memory event, as far as it tells: what clients load is in the leases."""
    if backend.phase is Phase.STARTING:
        return Doing.STARTING
    if backend.phase is Phase.STOPPING:
        return Doing.RELEASING
    if backend.warm.pending:
        return Doing.LOADING
    return _SLEEP_DOING.get(backend.sleep.stage)


def _on(facts: Facts, backend: BackendState, uuid: str) -> bool:
    placement = facts.placements.get(backend.name)
    return uuid in backend.run.held or (placement is not None and uuid in placement.devices)


def loading(facts: Facts, name: str) -> str:
    """The model that a client's granted load brings into this backend, "" for none."""
    return next((one.model for one in facts.leases.values() if one.backend == name), "")


def blocked(facts: Facts, backend: BackendState) -> Blocked | None:
    """Why this backend may not start now, None when it may."""
    problem = _host(facts, backend.name)
    if problem is not None:
        return problem
    problem = _nodes(facts, backend)
    if problem is not None:
        return problem
    for uuid in facts.placements[backend.name].devices:
        reason = _device(facts, backend, uuid)
        if reason is not None:
            return reason
    return None


def _host(facts: Facts, name: str) -> Blocked | None:
    placement = facts.placements.get(name)
    if placement is None or placement.problem:
        why = placement.problem if placement else "not placed"
        if not facts.seen.devices and facts.seen.nvml:
            why = f"the GPUs cannot be read: {facts.seen.nvml}"
        return Blocked(why, HOST)
    host = facts.seen.host
    if not host.looked:
        return Blocked("the host is being looked at: versions, commands, ports", HOST)
    for found in (host.missing_commands.get(name), host.taken_ports.get(name)):
        if found:
            return Blocked(found, HOST)
    return None


def _nodes(facts: Facts, backend: BackendState) -> Blocked | None:
    """Device nodes that its unit could not open later, and a wall that would not hold."""
    wanted = facts.settings.active.backends[backend.name]
    uuids = facts.placements[backend.name].devices
    known = all(uuid in facts.seen.devices for uuid in uuids)
    wall = _wall(facts, backend.name) if known else ""
    shut = nodes.shut_dxg(wanted, uuids, facts.seen.host) or wall
    if shut:
        return Blocked(shut, HOST)
    lacking = nodes.missing(wanted, uuids, facts.seen)
    if not lacking:
        return None
    why = f" ({backend.nodes.problem})" if backend.nodes.problem else ""
    return Blocked(nodes.waits_for(wanted, lacking) + why, NODES)


def heard_of_nodes(facts: Facts, backend: BackendState) -> BackendState:
    """With what came of making its nodes."""
    outcome = facts.outcome_of(backend.nodes.asked)
    if outcome is None:
        return backend
    return backend.having(nodes=backend.nodes.answered(outcome.detail))


def ask_for_nodes(
    facts: Facts, backend: BackendState, reason: Blocked
) -> tuple[BackendState, Notes]:
    """Have the nodes made that it waits for, now and then until they are there."""
    name, now = backend.name, facts.seen.now
    soon = now - backend.nodes.asked_at < nodes.ASK_EVERY_S
    if reason.kind != NODES or backend.nodes.asked or soon:
        return backend, ()
    wanted = facts.settings.active.backends[name]
    lacking = nodes.missing(wanted, facts.placements[name].devices, facts.seen)
    id_ = facts.action_id("nodes", name)
    action = MakeNodes(id_, name, facts.gpu_of(name), str(reason), lacking)
    return backend.having(nodes=backend.nodes.ask(action.id, now)), (Order(action),)


def context_of(facts: Facts, name: str) -> LaunchContext:
    """What the engine of a backend is started with now. Its placement has no problem."""
    return launch_context(
        facts.settings,
        name,
        facts.placements,
        {uuid: seen.device for uuid, seen in facts.seen.devices.items()},
        version=facts.seen.host.versions.get(name, ""),
        client=facts.seen.host.containers.get(name, ""),
    )


def _wall(facts: Facts, name: str) -> str:
    if not facts.settings.active.backends[name].device_wall:
        return ""
    context = context_of(facts, name)
    devices = context.devices if facts.seen.host.driver else ()
    return nodes.refusal(context.backend, launch_spec(context), devices)


def _device(facts: Facts, backend: BackendState, uuid: str) -> Blocked | None:
    seen = facts.seen.devices.get(uuid)
    if seen is None or seen.state is not GpuState.OK or not isinstance(seen.memory, Known):
        state = seen.state.value if seen else "not seen yet"
        detail = f": {seen.detail}" if seen and seen.detail else ""
        return Blocked(f"{_label(seen, uuid)} is {state}{detail}", BLIND)
    known = facts.device(uuid)
    if known.sampled.count < FRESH_SAMPLES:
        return Blocked(f"{_label(seen, uuid)}: {known.sampled.count} fresh samples so far", BLIND)
    if known.fault.text:
        return Blocked(f"{_label(seen, uuid)}: {known.fault.text}", BLIND)
    if known.sampled.pressure is Pressure.CRITICAL:
        return Blocked(f"{_label(seen, uuid)} is critical", ROOM)
    event = memory_event(facts, uuid, backend.name)
    if event is not None:
        return Blocked(f"{event} on {_label(seen, uuid)}", ORDER)
    first = _earlier(facts, backend, uuid)
    if first:
        return Blocked(f"{first} starts first on {_label(seen, uuid)}", ORDER)
    return _room(facts, backend, seen)


def _earlier(facts: Facts, backend: BackendState, uuid: str) -> str:
    """A waiting backend whose turn comes before; one that waits for room or the host is passed."""
    mine = facts.wanted(backend.name)
    if mine is None:
        return ""
    my_key = (engine_of(mine.kind).start_rank, backend.name)
    for other in facts.backends.values():
        theirs = facts.wanted(other.name)
        placement = facts.placements.get(other.name)
        if theirs is None or placement is None or other.phase is not Phase.WAITING:
            continue
        if uuid not in placement.devices or other.blocked_by not in ("", ORDER):
            continue
        if (engine_of(theirs.kind).start_rank, other.name) < my_key:
            return other.name
    return ""


def _room(facts: Facts, backend: BackendState, seen: DeviceObservation) -> Blocked | None:
    """Free memory must hold the cap and leave the device above the critical line; beside a memory event
    that hangs it must hold what is booked and not yet taken, too: it may go on at any moment. An engine
    that loads on demand starts cold: what it takes later goes through the gate of loads.
    """
    if not isinstance(seen.memory, Known):
        return Blocked("its memory cannot be read", BLIND)
    cap, what = facts.placements[backend.name].cap_bytes, "cap"
    wanted = facts.settings.active.backends[backend.name]
    if engine_of(wanted.kind).unload_requests(wanted, ""):
        cap, what = min(cap, COLD_START_BYTES), "a cold start"
    headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
    uuid = seen.device.uuid
    booked, hung = beside_hung(facts, uuid, backend.name)
    took = backend.history.start_took_s or FIRST_START_GUESS_S
    grown = int(pressure.growth(facts.device(uuid)) * took)
    need = cap + critical_free_bytes(headroom) + booked + grown
    free = seen.memory.value.free_bytes
    if free >= need:
        return None
    beside = f" + {format_size(booked)} booked beside {hung}, which hangs" if booked else ""
    growth = f" + {format_size(grown)} of growth meanwhile" if grown else ""
    text = (
        f"needs {format_size(need)} free on {_label(seen, uuid)} "
        f"({what} {format_size(cap)} + margin{beside}{growth}), {format_size(free)} is; "
        f"held by {holders(seen)}"
    )
    return Blocked(text, ROOM)


def room_for_load(facts: Facts, name: str, uuid: str, predicted: int, evicted: int = 0) -> str:
    """Why a model may not be loaded for want of bytes, "" when it may. ``evicted``: bytes that the engine
    gives back for it. What is booked for others, a margin, and what somebody may take again stay free.
    """
    seen, state = facts.seen.devices[uuid], facts.device(uuid)
    if not isinstance(seen.memory, Known):
        return "the GPU's memory cannot be read"
    headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
    margin = critical_free_bytes(headroom)
    if state.sampled.pressure is Pressure.TIGHT:
        margin = max(margin, int(headroom * TIGHT_LOAD_MARGIN))
    again = pressure.step_again(state, facts.seen.now)
    booked, free = promised(facts, uuid, name), seen.memory.value.free_bytes
    if free >= predicted - evicted + booked + margin + again:
        return ""
    why = (
        f"needs {format_size(predicted)}, {format_size(free)} is free, "
        f"{format_size(booked)} of it is booked for others"
    )
    stroke = f", {format_size(again)} was taken at one stroke and may be again" if again else ""
    return f"{why}{stroke}"


def beside_hung(facts: Facts, uuid: str, but: str) -> tuple[int, str]:
    """(bytes that are to stay free, whose memory event hangs there); (0, "") when none does."""
    hung = [b.name for b in facts.backends.values() if why_hung(b) and _on(facts, b, uuid)]
    others = [name for name in hung if name != but]
    return (promised(facts, uuid, but), others[0]) if others else (0, "")


def promised(facts: Facts, uuid: str, but: str) -> int:
    """Bytes of a device that are booked for other backends and that they do not hold yet."""
    return sum(
        max(0, (row.booked_bytes or 0) - (row.used_bytes or 0))
        for row in facts.ledgers.get(uuid, ())
        if row.holder != but and row.booked_bytes is not None
    )


def holders(seen: DeviceObservation, but: str = "") -> str:
    """Who holds bytes of a device, biggest first: 'vllm 13.10 GiB, pid 4711 (python3) 2.00 GiB'."""
    if not isinstance(seen.processes, Known):
        return "processes that cannot be listed"
    sizes: dict[str, int] = {}
    for one in seen.processes.value:
        name = one.holder or describe(one)
        size = one.used_bytes.value if isinstance(one.used_bytes, Known) else 0
        sizes[name] = sizes.get(name, 0) + size
    sizes.pop(but, None)
    ranked = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {format_size(size)}" for name, size in ranked) or "nobody listed"


def describe(process: GpuProcess) -> str:
    """A stranger in words: 'pid 4711 (python3 of bob, session-3.scope)'."""
    return strangers.named(process.pid, process.command, process.user, process.unit)


def _label(seen: DeviceObservation | None, uuid: str) -> str:
    if seen is None or seen.device.parent_uuid:
        return uuid
    return f"GPU {seen.device.index}"


def port_lost(facts: Facts, backend: BackendState) -> bool:
    """Somebody else listens where this engine should. TensorFlow Serving says so in its log and lives on
    without its REST port; in WAITING the thief is named. A container's forwarder may look like one.
    """
    wanted = facts.wanted(backend.name)
    here = wanted is not None and not wanted.image
    late = facts.seen.now - backend.since >= PORT_LOST_AFTER_S
    return here and late and backend.name in facts.seen.host.taken_ports
