"""What readers over a network are shown: everything but other users' processes.

The whole answer is walked, so that a new field cannot forget it: sentences lose names of processes
(model/strangers.py), lists called ``pids`` keep those of engines.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from arbiterd.model.published import Published
from arbiterd.model.strangers import masked


def own_pids(published: Published) -> frozenset[int]:
    """Pids of the engines."""
    views = published.decision.backends.values()
    return frozenset(pid for view in views for pid in view.pids)


def without_strangers(body: Any, own: AbstractSet[int]) -> Any:
    """A JSON value without the names of unmanaged processes."""
    if isinstance(body, str):
        return masked(body, own)
    if isinstance(body, dict):
        return {
            masked(key, own): [pid for pid in value if pid in own]
            if key == "pids" and isinstance(value, list)
            else without_strangers(value, own)
            for key, value in body.items()
        }
    if isinstance(body, list):
        return [without_strangers(one, own) for one in body]
    return body
