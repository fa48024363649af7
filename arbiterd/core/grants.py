"""At most one memory event per device: which start, wake or load of a first model begins in this tick.

The only place that serialises. It looks at every backend after its step, so that a start never begins in
the tick in which another engine dies; each grant is seen by the next.
"""

from __future__ import annotations

from collections.abc import Mapping

from arbiterd.core import lifecycle, sleeping, warm
from arbiterd.core.desk import Desk
from arbiterd.core.gate import moves
from arbiterd.core.state import Ask, BackendState


def grant(desk: Desk, asks: Mapping[str, Ask | None], before: Mapping[str, BackendState]) -> None:
    """In the order of the asks: what begins now, why the rest waits. ``before``: as the steps found them.

    A memory event that has ended in this tick is over at once for those that come after its backend, and
    from the next tick on for those that come before it.
    """
    moved = {name: before[name] for name in asks if moves(before[name])}
    for name, ask in asks.items():
        moved.pop(name, None)
        desk.moved = moved
        backend = desk.backends[name]
        match ask:
            case Ask.START:
                lifecycle.start(desk, backend)
            case Ask.WAKE:
                sleeping.wake(desk, backend)
            case Ask.WARM:
                warm.load(desk, backend)
            case None:
                pass
    desk.moved = {}
