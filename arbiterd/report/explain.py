"""A device's pressure in sentences, with the arithmetic: what people read in why, status and the page."""

from __future__ import annotations

from arbiterd.core.limits import (
    CALM_S,
    CALM_SLOW_S,
    CRITICAL_LEFT_FACTOR,
    CRITICAL_LEFT_S,
    DISRUPTIVE_WINDOW_S,
    TIGHT_S,
)
from arbiterd.core.memory.ledger import FOREIGN, UNATTRIBUTED
from arbiterd.model.backend import DeviceView
from arbiterd.model.devices import Pressure
from arbiterd.model.pressure import Holder, PressureView, ReclaimView
from arbiterd.quantities import format_duration, format_size


def reason(view: DeviceView) -> str:
    """Why the device is in its band, in one sentence with the numbers; "" without any."""
    detail = view.detail
    if detail is None:
        return ""
    match view.pressure:
        case Pressure.CRITICAL:
            return _critical(detail)
        case Pressure.TIGHT:
            return _tight(detail)
        case Pressure.UNKNOWN:
            return "no fresh reading of its memory with the list of who holds it"
        case Pressure.CALM:
            return _calm(detail)


def sentences(view: DeviceView) -> list[str]:
    """The whole story of this moment: band, arithmetic, growth, brakes, reclaim, candidates, fault."""
    detail = view.detail
    if detail is None:
        return []
    out = [f"{view.pressure.value}: {reason(view)}", *_arithmetic(detail), _free(detail)]
    out += _growth(detail)
    out += [_holder(one) for one in detail.holders]
    if detail.loads_held:
        out.append(f"no model may be loaded: {detail.loads_held}")
    out += [f"{name} is braked: {text}" for name, text in detail.braked.items()]
    if detail.reclaim is not None:
        out.append(reclaim(detail.reclaim))
    out += [
        f"{'chosen' if one.chosen else 'considered'}: {one.rung.value} of {one.backend}, "
        f"{format_size(one.bytes_expected)}: {one.reason}"
        for one in detail.candidates
    ]
    if detail.disruptive:
        window = format_duration(DISRUPTIVE_WINDOW_S)
        text = (
            f"{detail.disruptive} of at most {detail.disruptive_max} interventions within {window}"
        )
        spent = detail.disruptive >= detail.disruptive_max
        out.append(f"{text}: manual intervention required" if spent else text)
    if detail.fault:
        out.append(f"nothing is started there: {detail.fault}")
    return [one for one in out if one]


def reclaim(one: ReclaimView) -> str:
    """The reclaim in flight."""
    return (
        f"reclaim in flight: {one.rung.value} of {one.backend}, {format_size(one.bytes_expected)} "
        f"expected, {format_size(one.bytes_freed)} back so far ({one.stage}): {one.reason}"
    )


# -- bands -------------------------------------------------------------------------------------------
def _critical(detail: PressureView) -> str:
    free, limit = detail.free_bytes, detail.critical_below
    if free is not None and free < limit:
        return f"{format_size(free)} free is below {format_size(limit)}"
    full, lead = detail.time_to_full_s, detail.lead_s
    if full is not None and full < 2 * lead + 1:
        return (
            f"full in {format_duration(full)}, which is less than twice the "
            f"{format_duration(lead)} that a reclaim takes and a second"
        )
    left = format_size(int(CRITICAL_LEFT_FACTOR * limit))
    return (
        f"memory that nobody granted was being taken; tight again once that has stopped for "
        f"{format_duration(CRITICAL_LEFT_S)} and {left} are free"
    )


def _tight(detail: PressureView) -> str:
    if detail.solvency_bytes is None:
        return ""
    solvency = format_size(detail.solvency_bytes)
    if detail.solvency_bytes < detail.tight_below:
        limit = format_size(detail.tight_below)
        return f"solvency {solvency} is below {limit}, half the headroom"
    whole = detail.calm_s or CALM_S
    limit = format_size(detail.tight_below)
    again = ", longer than before since it came back" if whole > CALM_S else ""
    return (
        f"solvency {solvency} is back above {limit}; calm again once it has been above "
        f"{format_size(detail.calm_above)} for {format_duration(whole)}{again}, or above {limit} for "
        f"{format_duration(max(whole, CALM_SLOW_S))} while nothing grows"
    )


def _calm(detail: PressureView) -> str:
    if detail.solvency_bytes is None:
        return ""
    solvency, limit = format_size(detail.solvency_bytes), format_size(detail.tight_below)
    if detail.solvency_bytes < detail.tight_below:
        seconds = format_duration(TIGHT_S)
        return f"solvency {solvency} is below {limit}, but not for {seconds} yet"
    return f"solvency {solvency}, tight below {limit}"


# -- numbers -----------------------------------------------------------------------------------------
def _arithmetic(detail: PressureView) -> list[str]:
    if detail.solvency_bytes is None or detail.granted_bytes is None:
        return []
    terms = [
        f"{format_size(detail.capacity_bytes)} capacity",
        f"{format_size(detail.granted_bytes)} granted (caps, or what is held beyond them)",
    ]
    if detail.foreign_over_bytes:
        terms.append(f"{format_size(detail.foreign_over_bytes)} foreign beyond its allowance")
    if detail.unattributed_bytes:
        terms.append(f"{format_size(detail.unattributed_bytes)} that nobody listed holds")
    limits = f"tight below {format_size(detail.tight_below)}, calm above {format_size(detail.calm_above)}"
    out = [f"solvency {format_size(detail.solvency_bytes)} = {' - '.join(terms)}; {limits}"]
    if detail.releasing_bytes:
        size = format_size(detail.releasing_bytes)
        out.append(f"{size} of the dead are on their way back: not counted against anybody")
    return out


def _free(detail: PressureView) -> str:
    limit = format_size(detail.critical_below)
    if detail.free_bytes is None:
        return f"free memory cannot be read; critical below {limit}"
    return f"{format_size(detail.free_bytes)} free, critical below {limit}"


def _growth(detail: PressureView) -> list[str]:
    if not detail.excess_bytes:
        return []
    text = f"{format_size(detail.excess_bytes)} are held beyond what is granted"
    if detail.slope and detail.slope > 0:
        text += f", growing {format_size(int(detail.slope))}/s"
    if detail.time_to_full_s is not None:
        text += f": full in {format_duration(detail.time_to_full_s)}"
    return [text]


def _holder(one: Holder) -> str:
    what = {FOREIGN: "beyond its allowance", UNATTRIBUTED: "that nobody listed holds"}
    text = f"{one.name}: {format_size(one.over_bytes)} {what.get(one.name, 'over its cap')}"
    if one.growing and one.slope:
        return f"{text}, growing {format_size(int(one.slope))}/s"
    return f"{text}, growing" if one.growing else f"{text}, not growing"
