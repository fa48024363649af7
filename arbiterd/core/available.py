"""One incident while no backend takes work although some should."""

from __future__ import annotations

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts
from arbiterd.core.limits import BLOCKED_AFTER_S
from arbiterd.core.notes import About, Open
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName, Incident, Severity


def _expected(facts: Facts) -> list[BackendState]:
    return [b for b in facts.backends.values() if facts.wanted(b.name) and not b.wish.parked]


def _up(backend: BackendState) -> bool:
    ready = backend.phase is Phase.READY and backend.vitals.sick_since is None
    return ready or (
        backend.run.adopted and backend.phase is Phase.STARTING
    )  # it ran before we came


def wrong(facts: Facts) -> tuple[Open, ...]:
    """Not in a switch, where every engine may move at once: that was asked for, and is followed itself."""
    expected, now, switch = _expected(facts), facts.seen.now, facts.state.switch
    moving = switch is not None and not switch.rolling_back
    if not expected or moving or facts.seen.stopping or any(_up(one) for one in expected):
        return ()
    # A first start is no outage.
    if not all(
        b.history.start_took_s or b.history.attempt or now - b.since >= BLOCKED_AFTER_S
        for b in expected
    ):
        return ()
    names = ", ".join(f"{b.name} ({b.phase.value})" for b in expected)
    text, name = f"no backend takes work: {names}", EventName.ALL_UNAVAILABLE
    return (facts.open(name, Severity.CRITICAL, text, About((name,))),)


def over(facts: Facts, _: Incident) -> tuple[EventName, str] | None:
    """One takes work again."""
    up = next((one for one in _expected(facts) if _up(one)), None)
    return (EventName.RECOVERED, f"{up.name} takes work again") if up else None
