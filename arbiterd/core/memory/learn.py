"""What an OOM teaches: its class from dying words, exit and the memory of the seconds before, and caps
that are lowered by what a backend has proved to need beyond them.

Only "the device was full, by its own growth" lowers a cap: everything else is somebody else's doing,
or wants more memory, not less (design, section 5). A lowered cap restarts nothing by itself; it is
shown, kept over restarts, taken back by one command, and half a step of it after a calm day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import (
    CAP_CALM_S,
    CAP_FLOOR_FRACTION,
    CAP_STEP_FRACTION,
    CAP_STEP_MIN_BYTES,
    CAP_STEP_MOST_FRACTION,
    FOREIGN_SAID_BYTES,
    OOM_TRACE_S,
    REPEATED_OOMS,
)
from arbiterd.core.memory import pressure
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.core.memory.placement import headroom_bytes
from arbiterd.core.memory.pressure import critical_free_bytes
from arbiterd.core.notes import Note, Notes
from arbiterd.core.state import State
from arbiterd.engines import engine_of
from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.backend import Phase, Placement
from arbiterd.model.events import EventName, Severity
from arbiterd.model.observation import Observation
from arbiterd.model.pressure import LearnedCap
from arbiterd.model.settings import Kind, Settings
from arbiterd.quantities import GIB, MIB, format_size

MITIGATION: Mapping[CauseClass, str] = {
    CauseClass.NOT_ENOUGH_FREE: "its start waits until its cap and a margin are free",
    CauseClass.INIT_RACE: "started again unchanged once the card is quiet",
    CauseClass.BUDGET_TOO_SMALL: "it needs a larger cap or a shorter context, never a smaller cap",
    CauseClass.OOM_START: "started again when its cap and a margin are free; its cap stays",
    CauseClass.OOM_RUNTIME: "started again after its back-off; its cap stays: what filled it is not known",
    CauseClass.DEVICE_FULL: "its cap is lowered at its next start",
    CauseClass.NEIGHBOUR: "its cap stays: somebody else had taken more than was granted",
    CauseClass.POOL_FULL: "fewer requests at a time; its cap stays: a smaller pool would be full sooner",
    CauseClass.HOST_RAM: "host memory, not the card's: its cap stays; look at the host's own memory",
}
# PyTorch: "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ... of which 118.00 MiB is free."
_TRIED = re.compile(r"Tried to allocate ([\d.]+) (MiB|GiB)")
_FREE = re.compile(r"of which ([\d.]+) (MiB|GiB) is free")
_UNIT = {"MiB": MIB, "GiB": GIB}
_ALIVE = (Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.SLEEPING)


# -- keys and caps -----------------------------------------------------------------------------------
def what(settings: Settings, seen: Observation, name: str) -> tuple[str, str]:
    """(model, engine version) as a cap is learned for."""
    wanted = settings.active.backends[name]
    model = ",".join(engine_of(wanted.kind).served_models(wanted))
    return model, wanted.version or seen.host.versions.get(name, "")


def key(settings: Settings, seen: Observation, name: str, gpu: str) -> str:
    """One entry per (mode, backend, GPU, model, engine version): another model is another matter."""
    model, version = what(settings, seen, name)
    return f"{settings.mode}|{name}|{gpu}|{model}|{version}"


def apply(
    placements: Mapping[str, Placement], seen: Observation, state: State, settings: Settings
) -> dict[str, Placement]:
    """Placements with the learned caps; never below the floor."""
    if not state.learned:
        return dict(placements)
    out = {}
    for name, placement in placements.items():
        learned = _of(placement, seen, state, settings)
        started = _started(state, placement)
        if learned is None:
            out[name] = placement
        elif learned.on_cpu and not started:
            out[name] = Placement(name, (), 0)
        else:
            cap = max(cap_of(placement.cap_bytes, learned), started)
            out[name] = replace(placement, cap_bytes=cap)
    return out


def _started(state: State, placement: Placement) -> int:
    """The cap a living engine was started with, 0 for none: a lower one, learned in this mode, is for
    its next start, and must not make it an offender meanwhile.
    """
    backend = state.backends.get(placement.backend)
    if backend is None or backend.phase not in _ALIVE:
        return 0
    return min(backend.run.cap, placement.cap_bytes)


def cap_of(configured: int, learned: LearnedCap) -> int:
    """The cap in force for a configured one; never below the floor."""
    return max(int(configured * CAP_FLOOR_FRACTION), configured - learned.lowered_bytes)


def _of(
    placement: Placement, seen: Observation, state: State, settings: Settings
) -> LearnedCap | None:
    """The entry of its first device that has one: caps are the same on every device of a list."""
    for uuid in placement.devices:
        found = state.learned.get(key(settings, seen, placement.backend, uuid))
        if found is not None:
            return found
    return None


# -- classes -----------------------------------------------------------------------------------------
def refine(facts: Facts, backend: BackendState, cause: Cause, lines: tuple[str, ...]) -> Cause:
    """The class from the words, corrected by the exit and by what the memory showed."""
    if facts.unit(backend.name).host_oom:
        summary = "the kernel's OOM killer ended it: the host ran out of memory"
        return Cause(CauseClass.HOST_RAM, cause.line, summary)
    if cause.cause not in (CauseClass.OOM_RUNTIME, CauseClass.OOM_START):
        return cause
    uuid = facts.gpu_of(backend.name)
    seen, state = facts.seen.devices.get(uuid), facts.device(uuid)
    if seen is None:
        return cause
    text = " ".join(lines)
    tried, said_free = _size(_TRIED, text), _size(_FREE, text)
    lowest = min((free for _, free in state.sampled.frees), default=None)
    if said_free is not None:
        lowest = said_free if lowest is None else min(lowest, said_free)
    headroom = headroom_bytes(facts.settings.arbiter.headroom_bytes, seen.device)
    line = max(critical_free_bytes(headroom), tried or 0)
    if lowest is None or lowest >= line:
        return cause
    other = _others(facts, backend.name, state)
    short = f"{format_size(lowest)} were free" + (f", {format_size(tried)} asked" if tried else "")
    if other and not _own(facts, backend, state):
        return Cause(CauseClass.NEIGHBOUR, cause.line, f"the card was full ({short}): {other}")
    if cause.cause is CauseClass.OOM_START:
        return Cause(
            CauseClass.NOT_ENOUGH_FREE, cause.line, f"not enough free at its start: {short}"
        )
    return Cause(
        CauseClass.DEVICE_FULL, cause.line, f"the card was full by its own growth: {short}"
    )


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    return int(float(found[1]) * _UNIT[found[2]]) if found else None


def _own(facts: Facts, backend: BackendState, state: DeviceState) -> bool:
    """Whether it was over its cap itself. What it asked for last does not count: while others hold
    more than was granted, nobody knows that it would not have fitted beside them.
    """
    held = max(
        (size for _, size in state.sampled.windows.get(backend.name, ())),
        default=max(backend.run.held.values(), default=0),
    )
    cap = facts.placements[backend.name].cap_bytes
    return held > cap + pressure.over_margin(cap)


def _others(facts: Facts, name: str, state: DeviceState) -> str:
    """Who else held more than was granted in the last seconds, "" for nobody."""
    since = facts.seen.now - OOM_TRACE_S
    allow = facts.settings.foreign_allow_bytes
    for holder, window in state.sampled.windows.items():
        most = max((size for at, size in window if at >= since), default=0)
        if holder == "foreign" and most > allow + FOREIGN_SAID_BYTES:
            return f"strangers held {format_size(most)}, {format_size(allow)} are allowed"
        placement = facts.placements.get(holder)
        if holder == name or placement is None or holder not in facts.backends:
            continue
        if most > placement.cap_bytes + pressure.over_margin(placement.cap_bytes):
            return (
                f"{holder} held {format_size(most)}, its cap is {format_size(placement.cap_bytes)}"
            )
    return ""


# -- lowering and undoing ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Lesson:
    """What an OOM has taught: its cause in full, and entries of ``State.learned``."""

    backend: BackendState
    cause: Cause
    notes: Notes = ()
    learned: Mapping[str, LearnedCap] = field(default_factory=dict)


def after_oom(facts: Facts, backend: BackendState, cause: Cause) -> Lesson:
    """Count it; lower the cap, move to the CPU or stop, as ``on_oom`` says."""
    if cause.cause is not CauseClass.DEVICE_FULL:
        return Lesson(backend, cause)
    now = facts.seen.now
    ooms = (*[at for at in backend.history.ooms if now - at < CAP_CALM_S], now)[-16:]
    backend = backend.having(history=backend.history.out_of_memory(ooms))
    wanted = facts.settings.active.backends[backend.name]
    repeated = len(ooms) >= REPEATED_OOMS
    if repeated and wanted.on_oom == "stop":
        text = f"{cause.summary}; out of memory {len(ooms)} times: on_oom = stop"
        return Lesson(backend, replace(cause, summary=text, retry=False))
    on_cpu = repeated and wanted.on_oom == "cpu" and wanted.kind is Kind.OLLAMA
    notes, learned = _lowered(facts, backend.name, cause, on_cpu=on_cpu)
    return Lesson(backend, cause, notes, learned)


def _lowered(
    facts: Facts, name: str, cause: Cause, *, on_cpu: bool
) -> tuple[Notes, dict[str, LearnedCap]]:
    configured = facts.configured[name].cap_bytes
    model, version = what(facts.settings, facts.seen, name)
    least = min(CAP_STEP_MIN_BYTES, int(configured * CAP_STEP_MOST_FRACTION))
    step = max(int(configured * CAP_STEP_FRACTION), least)
    most = configured - int(configured * CAP_FLOOR_FRACTION)
    notes, learned = list[Note](), dict[str, LearnedCap]()
    for uuid in facts.configured[name].devices:
        where = key(facts.settings, facts.seen, name, uuid)
        old = facts.learned.get(where)
        before = old.lowered_bytes if old else 0
        lowered = min(most, before + step)
        learned[where] = LearnedCap(
            mode=facts.settings.mode,
            backend=name,
            gpu=uuid,
            model=model,
            version=version,
            lowered_bytes=lowered,
            step_bytes=step,
            ooms=(old.ooms if old else 0) + 1,
            at=facts.seen.wall,
            reason=cause.summary,
            on_cpu=on_cpu,
        )
        if on_cpu:
            text = f"{name}: runs on the CPU from its next start: {cause.summary}"
        elif lowered == before:
            text = f"{name}: its cap is at its floor of {format_size(configured - most)} already"
        else:
            cap = format_size(configured - lowered)
            text = (
                f"{name}: its cap is {cap} from its next start, {format_size(lowered)} less than "
                f"configured: {cause.summary}; undo: arbiterctl caps reset {name}"
            )
        event, severity = EventName.CAP_LOWERED, Severity.WARNING
        notes.append(facts.say(event, severity, text, name, gpu=uuid, reason=cause.summary))
    return tuple(notes), learned


def before_start(facts: Facts, name: str) -> tuple[Facts, Notes]:
    """Half a step back after a calm day, at a start that happens anyway."""
    configured = facts.configured.get(name)
    learned, notes = dict(facts.learned), list[Note]()
    for uuid in configured.devices if configured else ():
        where = key(facts.settings, facts.seen, name, uuid)
        old = learned.get(where)
        if old is None or facts.seen.wall - old.at < CAP_CALM_S:
            continue
        left = old.lowered_bytes - old.step_bytes // 2
        if left <= 0:
            del learned[where]
            text = f"{name}: its configured cap is in force again after a calm day"
        else:
            learned[where] = replace(old, lowered_bytes=left, at=facts.seen.wall, on_cpu=False)
            text = f"{name}: half a step of its cap is given back: {format_size(left)} less than configured"
        notes.append(facts.say(EventName.CAP_RESTORED, Severity.NOTICE, text, name, gpu=uuid))
    if configured is None or not notes:
        return facts, ()
    state = facts.before.having(learned=learned)
    mine = apply({name: configured}, facts.seen, state, facts.settings)
    placements = {**facts.placements, **mine}
    return replace(facts, learned=learned, placements=placements), tuple(notes)


def reset(facts: Facts, name: str, by: str) -> tuple[Facts, Note]:
    """``arbiterctl caps reset NAME``: everything learned about it, in every mode."""
    kept = {where: one for where, one in facts.learned.items() if one.backend != name}
    gone = len(facts.learned) - len(kept)
    text = f"{name}: {gone} learned caps forgotten by {by}; in force from its next start"
    said = facts.say(EventName.CAP_RESTORED, Severity.NOTICE, text, name, reason=f"operator: {by}")
    return replace(facts, learned=kept), said
