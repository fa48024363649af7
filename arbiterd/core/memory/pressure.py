"""Pressure of a device: what is owed, what is free, what grows beyond its bounds, and how fast.

Two signals. Solvency: capacity less what everybody may still take; low means tight. Free memory: low,
or about to be eaten by bytes that nobody granted, means critical. Growth inside a cap is planned and
never pressure (design, section 5). Nothing is judged on a device that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from arbiterd.core.limits import (
    AGAIN_WINDOW_S,
    CALM_S,
    CALM_SLOW_S,
    CONFIRM_S,
    CONFIRM_SAMPLES,
    CRITICAL_LEFT_FACTOR,
    CRITICAL_LEFT_S,
    FREE_CRITICAL_MIN_BYTES,
    LEAD_S,
    LOOKAHEAD,
    MOVED_BYTES,
    MOVED_FOR_S,
    OVER_FRACTION,
    OVER_MIN_BYTES,
    OVER_S,
    RELEASING_S,
    SLOPE_GAP_S,
    SLOPE_GUILTY,
    SLOPE_MIN,
    STEP_BYTES,
    STEP_HELD_MAX_S,
    STEP_HELD_S,
    TIGHT_S,
)
from arbiterd.core.memory import slope as trend
from arbiterd.core.memory.device_state import DeviceState, Sampled
from arbiterd.core.memory.ledger import FOREIGN, HEADROOM, UNATTRIBUTED
from arbiterd.core.memory.slope import Window
from arbiterd.core.records import later, updated
from arbiterd.model.backend import LedgerRow
from arbiterd.model.devices import DeviceObservation, GpuState, Pressure
from arbiterd.model.reading import Known

EXCESS = "excess"
_STEPS_KEPT = 8  # more make no difference to a dwell that has its bound


def critical_free_bytes(headroom: int) -> int:
    """Free memory under which the device is critical: max(256 MiB, a quarter of the headroom)."""
    return max(FREE_CRITICAL_MIN_BYTES, headroom // 4)


def tight_below(headroom: int) -> int:
    """Solvency under which a device becomes tight: half its headroom."""
    return headroom // 2


def calm_above(headroom: int) -> int:
    """Solvency over which it becomes calm again: nine tenths of its headroom."""
    return headroom * 9 // 10


def over_margin(cap: int) -> int:
    """How far over its cap a backend must be to count: max(256 MiB, 3 %)."""
    return max(OVER_MIN_BYTES, int(cap * OVER_FRACTION))


def observe(
    device: DeviceObservation,
    old: DeviceState,
    ledger: tuple[LedgerRow, ...],
    headroom: int,
    allow: int,
    now: float,
    leaving: frozenset[str] = frozenset(),
    gap_s: float = SLOPE_GAP_S,
    *,
    lines: Mapping[str, int] | None = None,
    calm_s: float = CALM_S,
) -> DeviceState:
    """Fold the newest sample into the device's state and move its band. ``leaving``: backends on their
    way out (a switch, a restart): what they hold above their caps is about to come back. ``gap_s``:
    seconds between two samples that make a hole. ``lines``: core/lines.py; ``calm_s``: for how long it
    must be calm.

    A device that cannot be read keeps its brakes and its reclaim, and loses its windows.
    """
    memory = device.memory
    if device.state is not GpuState.OK or not isinstance(memory, Known):
        return kept(old)
    state, free = old.sampled, memory.value.free_bytes
    if memory.at > state.last_at:
        state = replace(
            state,
            count=state.count + 1,
            last_at=memory.at,
            frees=trend.push_lowest(state.frees, memory.at, free),
        )
        listed = _listed(device)
        if listed is not None and listed >= memory.at:
            capacity = device.device.capacity_bytes
            books = _Books(ledger, capacity, allow, leaving, gap_s, lines or {})
            state = _books(state, books, memory.at)
        elif listed is None:
            # Who was over his cap when there last was a list proves nothing now.
            state = replace(
                state,
                solvency=None,
                seen_at=-1.0,
                excess=0,
                slope=None,
                over_since={},
                windows={},
                step=0,
            )
        before, lead_s = old.sampled, old.ladder.lead_s
        apart = not before.alarms or memory.at - before.last_at >= CONFIRM_S
        state = _urgency(state, free, headroom, lead_s, now, apart=apart)
    return old.having(sampled=_band(state, free, headroom, now, calm_s))


def confirmed(state: DeviceState) -> bool:
    """Critical by two samples CONFIRM_S apart, at most CRITICAL_LEFT_S: reclaims and freeze may follow."""
    return state.sampled.pressure is Pressure.CRITICAL and state.sampled.alarms >= CONFIRM_SAMPLES


def over_for(state: DeviceState, name: str, now: float) -> float:
    """Seconds for which a backend has been over its line by more than the margin, 0 when it is not."""
    since = state.sampled.over_since.get(name)
    return 0.0 if since is None else now - since


def is_over(state: DeviceState, name: str, cap: int, now: float) -> bool:
    """Guilty: over its line for OVER_S, or over it now and rising, or over its cap by anything and filling
    the card. A spike is none of these: one step is no slope.
    """
    if name in state.sampled.over_since and (
        over_for(state, name, now) >= OVER_S or grows(state, name)
    ):
        return True
    return state.sampled.used.get(name, 0) > cap and fills(state, name)


def fills(state: DeviceState, name: str) -> bool:
    """It grows, faster than allocators drift."""
    return grows(state, name) and (slope_of(state, name) or 0.0) > SLOPE_GUILTY


def step_again(state: DeviceState, now: float) -> int:
    """Bytes that a load leaves free: somebody took so much at one stroke, and may again; for longer each
    time that he does.
    """
    if not state.sampled.stepped:
        return 0
    dwell = min(STEP_HELD_MAX_S, STEP_HELD_S * 2.0 ** (len(state.sampled.stepped) - 1))
    if now - state.sampled.stepped[-1][0] >= dwell:
        return 0
    return max(size for _, size in state.sampled.stepped)


def grows(state: DeviceState, name: str) -> bool:
    """Whether this holder's bytes rise now."""
    return trend.growing(state.sampled.windows.get(name, ()))


def slope_of(state: DeviceState, name: str) -> float | None:
    """Bytes a second of one holder."""
    return trend.slope(state.sampled.windows.get(name, ()))


def growth(state: DeviceState) -> float:
    """Bytes a second that nobody was granted, 0.0 while nothing or little grows."""
    return _growth(state.sampled)


def _growth(sampled: Sampled) -> float:
    speed = sampled.slope or 0.0
    return speed if sampled.excess and speed > SLOPE_MIN else 0.0


def lists_soon(state: DeviceState, now: float) -> bool:
    """Whether process lists are wanted with each sample: something moves, or is being taken back."""
    if state.ladder.reclaim is not None or state.sampled.pressure in (
        Pressure.TIGHT,
        Pressure.CRITICAL,
    ):
        return True
    if trend.last_step(state.sampled.frees) < -STEP_BYTES:
        return True  # whose it is must not wait for a slow list
    return now - state.sampled.moved_at < MOVED_FOR_S


def kept(old: DeviceState) -> DeviceState:
    """What is true of a device that cannot be read: what was done there, not what was measured."""
    sampled = Sampled(last_at=old.sampled.last_at, stepped=old.sampled.stepped)
    return old.having(sampled=sampled, ladder=old.ladder.ranked(()))


def excused(sampled: Sampled, seconds: float) -> Sampled:
    """As if so much time had not passed."""
    over = {name: at + seconds for name, at in sampled.over_since.items()}
    moved = later(sampled, seconds, "band_since", "band_broken", "foreign_calm_at")
    return updated(
        moved,
        over_since=over,
        grew_at={name: at + seconds for name, at in sampled.grew_at.items()},
        stepped=tuple((at + seconds, size) for at, size in sampled.stepped),
    )


def foreign_calm(sampled: Sampled, *, over: bool, now: float) -> Sampled:
    """With the moment since which foreign memory is within its allowance."""
    since = sampled.foreign_calm_at if sampled.foreign_calm_at is not None else now
    return updated(sampled, foreign_calm_at=None if over else since)


# -- books: only where memory and process list are of one sample ------------------------------------
@dataclass(frozen=True, slots=True)
class _Books:
    """The ledger and what it is read with."""

    ledger: tuple[LedgerRow, ...]
    capacity: int
    allow: int
    leaving: frozenset[str]
    gap_s: float
    lines: Mapping[str, int]

    def backends(self) -> Iterator[LedgerRow]:
        """Rows of backends."""
        return (row for row in self.ledger if row.holder not in (HEADROOM, FOREIGN, UNATTRIBUTED))

    def over(self) -> dict[str, int]:
        """Bytes above the cap, by backend; nothing of those that leave or have no place here."""
        return {
            row.holder: (row.used_bytes or 0) - (row.cap_bytes or 0)
            for row in self.backends()
            if row.cap_bytes and row.holder not in self.leaving
        }

    def solvency(self, foreign: int, rest: int) -> int:
        """S = capacity - sum max(cap, used) - max(0, foreign - allow) - unattributed (design, 5)."""
        left = self.capacity - foreign - rest
        for row in self.backends():
            cap = row.cap_bytes or 0
            booked = row.booked_bytes or 0
            left -= min(cap, booked) if row.holder in self.leaving or not cap else booked
        return left


def _listed(device: DeviceObservation) -> float | None:
    """When its process list was read; None where it cannot be, or names no sizes (WSL2, vGPU): then
    nothing tells whose the bytes are.
    """
    if not isinstance(device.processes, Known):
        return None
    if any(p.holder and not isinstance(p.used_bytes, Known) for p in device.processes.value):
        return None
    return device.processes.at


def _books(state: Sampled, books: _Books, at: float) -> Sampled:
    used = {row.holder: row.used_bytes for row in books.ledger if row.used_bytes is not None}
    caps = {row.holder: row.cap_bytes or 0 for row in books.ledger}
    releasing = _releasing(state, used, at)
    rest = max(0, used.get(UNATTRIBUTED, 0) - releasing)
    foreign = max(0, used.get(FOREIGN, 0) - books.allow)
    over = books.over()
    excess = rest + foreign + sum(size for size in over.values() if size > 0)
    windows: dict[str, Window] = {
        name: trend.push(state.windows.get(name, ()), at, size, books.gap_s)
        for name, size in (*used.items(), (EXCESS, excess))
    }
    over_since = {
        name: state.over_since.get(name, at)
        for name in over
        if used.get(name, 0) > max(caps[name], books.lines.get(name, 0)) + over_margin(caps[name])
    }
    steps = (min(size, trend.last_step(windows[name])) for name, size in over.items())
    moved = abs(excess - state.excess) > MOVED_BYTES or over_since.keys() != state.over_since.keys()
    first = state.seen_at < 0
    return replace(
        state,
        seen_at=at,
        solvency=books.solvency(foreign, rest),
        used=used,
        windows=windows,
        excess=excess,
        slope=trend.slope(windows[EXCESS]),
        releasing=releasing,
        releasing_until=at + RELEASING_S if releasing > state.releasing else state.releasing_until,
        over_since=over_since,
        grew_at={
            name: at if trend.growing(windows[name]) else state.grew_at.get(name, at)
            for name, size in over.items()
            if size > 0
        },
        step=max(steps, default=0),
        moved_at=at if moved and not first else state.moved_at,
    )


def _releasing(state: Sampled, used: Mapping[str, int], at: float) -> int:
    """Bytes that a listed holder has just lost and that NVML still counts: on their way back, not
    taken by anybody. They would be counted twice, once as booked and once as unattributed.
    """
    rest = max(0, used.get(UNATTRIBUTED, 0))
    before = max(0, state.used.get(UNATTRIBUTED, 0))
    lost = sum(
        max(0, size - used.get(name, 0))
        for name, size in state.used.items()
        if name != UNATTRIBUTED
    )
    known = state.releasing if at < state.releasing_until else 0
    return min(rest, known + min(lost, max(0, rest - before)))


# -- urgency: every sample ---------------------------------------------------------------------------
def _urgency(
    state: Sampled, free: int, headroom: int, lead_s: float, now: float, *, apart: bool
) -> Sampled:
    """``lead_s``: what a reclaim takes. ``apart``: the sample counts as another one than that before it."""
    left = free - critical_free_bytes(headroom)
    speed = state.slope if state.excess else None
    to_full = free / speed if speed is not None and speed > SLOPE_MIN else None
    alarm = left < 0
    alarm |= to_full is not None and to_full < 2 * lead_s + 1.0
    alarm |= state.step > STEP_BYTES and left < LOOKAHEAD * state.step
    step = trend.last_step(state.windows.get(EXCESS, ()))
    stepped = tuple(one for one in state.stepped if now - one[0] < AGAIN_WINDOW_S)
    if step > STEP_BYTES and left < LOOKAHEAD * step and state.seen_at == state.last_at:
        stepped = (*stepped, (now, step))[-_STEPS_KEPT:]
    # While a door is held growth comes in pushes: the second sample need not be the next.
    near = free < CRITICAL_LEFT_FACTOR * critical_free_bytes(headroom)
    lately = alarm or (near and state.alarms > 0 and now - state.alarm_at < CRITICAL_LEFT_S)
    return replace(
        state,
        time_to_full_s=to_full,
        alarms=state.alarms + (alarm and apart) if lately else 0,
        alarm_at=now if alarm else state.alarm_at,
        stepped=stepped,
    )


# -- bands ----------------------------------------------------------------------------------------------
def _band(state: Sampled, free: int, headroom: int, now: float, calm_s: float) -> Sampled:
    if state.alarms:
        return _enter(state, Pressure.CRITICAL)
    if state.pressure is Pressure.CRITICAL:
        calm = now - state.alarm_at >= CRITICAL_LEFT_S
        if not calm or free < CRITICAL_LEFT_FACTOR * critical_free_bytes(headroom):
            return state
        state = _enter(state, Pressure.TIGHT)
    if state.solvency is None:
        return _enter(state, Pressure.UNKNOWN)
    if state.pressure is Pressure.TIGHT:
        wants, dwell = _calming(state, headroom, calm_s)
        target = Pressure.CALM
    else:
        short = (state.solvency or 0) < tight_below(headroom)
        if (
            not short
        ):  # out of UNKNOWN, a short device stays unknown until it has been so long enough
            state = _enter(state, Pressure.CALM)
        wants, dwell, target = short, TIGHT_S, Pressure.TIGHT
    if not wants:
        return _interrupted(state, target, now)
    if state.band_broken is not None:
        state = replace(state, band_broken=None)
    since = state.band_since if state.band_since is not None else now
    if now - since >= dwell:
        return _enter(state, target)
    return state if since == state.band_since else replace(state, band_since=since)


def _interrupted(state: Sampled, target: Pressure, now: float) -> Sampled:
    """The way to another band begins anew; but what would not make a device tight, the spike of a request,
    does not keep it so either.
    """
    if state.band_since is None:
        return state
    since = state.band_broken if state.band_broken is not None else now
    if target is Pressure.CALM and now - since < TIGHT_S:
        return state if state.band_broken == since else replace(state, band_broken=since)
    return replace(state, band_since=None, band_broken=None)


def _calming(state: Sampled, headroom: int, calm_s: float) -> tuple[bool, float]:
    """(whether it is on its way to calm, for how long it must be)."""
    solvent = state.solvency or 0
    if solvent > calm_above(headroom):
        return True, calm_s
    # A full budget over a driver that holds some memory itself never comes to nine tenths.
    quiet = not state.over_since and _growth(state) <= SLOPE_GUILTY
    return quiet and solvent >= tight_below(headroom), max(CALM_SLOW_S, calm_s)


def _enter(state: Sampled, band: Pressure) -> Sampled:
    if state.pressure is band:
        return state
    return replace(state, pressure=band, band_since=None, band_broken=None)


def lead_of(took_s: float, old: float, most: float) -> float:
    """The lead time after a reclaim that took so long: quickly up, slowly down, bounded."""
    found = max(took_s, old * 0.8) if took_s < old else took_s
    return max(LEAD_S, min(most, found))
