"""The decision as it is handed out: orders and events, and a view of every backend and device."""

from __future__ import annotations

from arbiterd.core.backend.backend_state import ending
from arbiterd.core.backend.planning import engine_url
from arbiterd.core.facts import Facts
from arbiterd.core.memory.gate import loading
from arbiterd.core.memory.pressure import lists_soon
from arbiterd.core.mode import switch
from arbiterd.core.views import backend_view, device_view, used_by_holder
from arbiterd.model.actions import Action
from arbiterd.model.backend import Phase
from arbiterd.model.decision import Decision
from arbiterd.model.devices import GpuState
from arbiterd.model.events import Event
from arbiterd.model.gateway import GatewayWish, LoadAnswer
from arbiterd.model.health import ProbeOrder
from arbiterd.model.launch import UnitState
from arbiterd.model.settings import Settings

_PROBED = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


def decision(
    facts: Facts,
    actions: tuple[Action, ...],
    events: tuple[Event, ...],
    doors: GatewayWish,
    loads: tuple[LoadAnswer, ...],
    back_to: Settings | None,
) -> Decision:
    """What this tick orders and says, and what is published of everything."""
    listed = [*facts.settings.active.backends]
    listed += [name for name in facts.backends if name not in listed]
    used = used_by_holder(facts.ledgers)
    views = {
        name: backend_view(facts, facts.backends[name], used.get(name, 0))
        for name in listed
        if name in facts.backends
    }
    devices = {uuid: device_view(facts, uuid, facts.ledgers[uuid]) for uuid in facts.seen.devices}
    quiet = all(b.phase is Phase.STOPPED and not b.pending for b in facts.backends.values())
    blind = bool(facts.seen.nvml) or any(
        seen.state is not GpuState.OK for seen in facts.seen.devices.values()
    )
    return Decision(
        actions=actions,
        events=events,
        probes=probes(facts),
        backends=views,
        devices=devices,
        incidents=facts.incidents,
        blind=blind,
        learned=facts.learned,
        switch=switch.view(facts),
        last_switch=facts.state.last,
        times=switch.known_times(facts),
        lists_soon=any(lists_soon(state, facts.seen.now) for state in facts.devices.values()),
        settled=quiet and not actions,
        gateway=doors,
        loads=loads,
        back_to=back_to,
    )


def probes(facts: Facts) -> tuple[ProbeOrder, ...]:
    """Whom to ask for signs of life, how often and with what."""
    orders = []
    for backend in facts.backends.values():
        wanted, unit = facts.wanted(backend.name), facts.unit(backend.name)
        if wanted is None or backend.phase not in _PROBED or unit.state is not UnitState.RUNNING:
            continue
        vitals = backend.vitals
        # What is resident changes under a load: a canary then could be one itself.
        quiet = not loading(facts, backend.name) and not backend.warm.pending
        suspect = bool(vitals.bad or vitals.canary_bad or vitals.stuck or vitals.canary_due)
        orders.append(
            ProbeOrder(
                backend=backend.name,
                url=engine_url(facts.settings, wanted),
                fence=unit.invocation,
                fast=backend.phase is Phase.STARTING or ending(backend) or suspect,
                canary_due=vitals.canary_due and quiet,
                trial=backend.canaries.asked,
                canaries=backend.canaries.kept,
            )
        )
    return tuple(orders)
