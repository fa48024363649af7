"""In-flight limits per server line. Pure arithmetic; the sum over all lines and old workers of a
backend never exceeds its ``max_in_flight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One server line now: its streams, its queue, its limit; ``old``: streams of old workers."""

    in_flight: int
    queued: int
    limit: int
    old: int = 0


def split(total: int, lines: Mapping[str, Line]) -> dict[str, int]:
    """A limit for every line, 0: none may enter now (HAProxy takes 0 as unlimited: use maint).

    One line gets all of it. Several (TensorFlow's REST and gRPC) share: each keeps what it uses,
    the free slots go where requests wait, else evenly. A line is only raised by what another has
    really given up already: its streams count until they have ended.
    """
    names = list(lines)
    room = total - sum(one.old for one in lines.values())
    if room <= 0:
        return dict.fromkeys(names, 0)
    if len(names) == 1:
        return {names[0]: room}
    wanted = _wanted(room, lines)
    out: dict[str, int] = {}
    for name in names:
        # What the others may hold at this moment, whatever they are told now.
        others = sum(
            max(one.in_flight, min(wanted[other], one.limit or wanted[other]))
            for other, one in lines.items()
            if other != name
        )
        out[name] = max(0, min(wanted[name], room - others))
    return out


def _wanted(room: int, lines: Mapping[str, Line]) -> dict[str, int]:
    """Each what it uses; the rest in turn to who waits, then to all, one slot at a time."""
    out = {name: min(one.in_flight, room) for name, one in lines.items()}
    while sum(out.values()) > room:
        out[max(out, key=lambda name: out[name])] -= 1
    left = room - sum(out.values())
    for name in lines:  # nobody is shut out: a first request must find a slot
        if out[name] == 0 and left:
            out[name], left = 1, left - 1
    waiting = {name: one.queued for name, one in lines.items()}
    while left:
        some = max(lines, key=lambda name: (waiting[name] > 0, -out[name] + min(waiting[name], 1)))
        out[some] += 1
        waiting[some] = max(0, waiting[some] - 1)
        left -= 1
    return out
