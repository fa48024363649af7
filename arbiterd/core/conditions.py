"""What is wrong for as long as it lasts: incidents that follow from what is seen and from the state alone.

Level-triggered: each tick asks anew what holds, and of every open incident whether that is over. There are
four looks a tick: NVML before its XIDs are judged, backends after their steps, devices before the ladder,
whose reclaims belong to an incident, and the host at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from arbiterd.core import available, files
from arbiterd.core.backend import failing, warm
from arbiterd.core.facts import Facts
from arbiterd.core.memory import faults, gpus, ladder, offenders
from arbiterd.core.notes import TROUBLE, Close, Notes, Open
from arbiterd.core.traffic import doors
from arbiterd.model.events import EventName, Incident

Over: TypeAlias = Callable[[Facts, Incident], tuple[EventName, str] | None]

_NVML: Mapping[EventName, Over] = dict.fromkeys(gpus.NAMES, gpus.over)
_BACKENDS: Mapping[EventName, Over] = {
    **dict.fromkeys(TROUBLE, failing.over),
    EventName.RELEASE_SLOW: failing.slow_over,
    EventName.GPU_FAULT: faults.over,
}
_DEVICES: Mapping[EventName, Over] = {
    EventName.FOREIGN_MEMORY: offenders.foreign_over,
    EventName.LEAK: offenders.leak_over,
    EventName.LOAD_HELD: warm.waits_over,
    EventName.PRESSURE_RISE: ladder.over,
}
_HOST: Mapping[EventName, Over] = {
    EventName.DOOR_BROKEN: doors.way_over,
    EventName.GATEWAY_DOWN: doors.gateway_over,
    EventName.PORT_TAKEN: doors.taken_over,
    EventName.STATE_UNWRITABLE: files.over,
    EventName.ALL_UNAVAILABLE: available.over,
}


def of_nvml(facts: Facts) -> Notes:
    """Devices that cannot be read."""
    return _reconciled(facts, gpus.wrong(facts), _NVML)


def of_backends(facts: Facts) -> Notes:
    """Trouble of backends and cards that has ended; it begins where it is met."""
    return _reconciled(facts, (), _BACKENDS)


def of_devices(facts: Facts) -> Notes:
    """Devices under pressure, and who is over a bound there."""
    return _reconciled(facts, ladder.wrong(facts), _DEVICES)


def of_host(facts: Facts) -> Notes:
    """The gateway and its doors, files, and whether any backend takes work."""
    wrong = (*doors.wrong(facts), *files.wrong(facts), *available.wrong(facts))
    return _reconciled(facts, wrong, _HOST)


def _reconciled(facts: Facts, wrong: Iterable[Open], ends: Mapping[EventName, Over]) -> Notes:
    """Open what holds; close what is over, with the words of its own file."""
    ended = (
        Close(one.id, *how)
        for one in facts.incidents
        if one.closed_at is None and (end := ends.get(one.event)) and (how := end(facts, one))
    )
    return (*wrong, *ended)
