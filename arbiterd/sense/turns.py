"""Whose turn a canary is, among the models that one engine has resident."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from arbiterd.model.health import LoadedModel

FOR_EVER_S = 3600.0 * 24 * 365  # Ollama says 'for ever' as 292 years
LEAVING_S = 2.0  # one that leaves so soon could be gone when the canary comes, and be loaded by it
_SAME_S = 0.5


class Turns:
    """One canary after the other, the one longest not asked first.

    A request counts the time that a model stays anew. So one that leaves by itself is asked once
    after each use, and not again until a client has used it: else it would never leave.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._asked: dict[str, int] = {}
        self._left_at: dict[str, float] = {}  # epoch seconds, as our own canary has left it
        self._failed = ""

    def choose(self, loaded: Sequence[LoadedModel], wall: float) -> LoadedModel | None:
        """The model to ask, None when it is nobody's turn. One that has failed is asked again."""
        able = [one for one in loaded if self._may(one, wall)]
        if not able:
            return None
        return min(able, key=lambda one: (one.name != self._failed, self._asked.get(one.name, 0)))

    def _may(self, one: LoadedModel, wall: float) -> bool:
        if one.expires_in_s is None or one.expires_in_s > FOR_EVER_S or one.name == self._failed:
            return True
        before = self._left_at.get(one.name)
        used = before is None or abs(wall + one.expires_in_s - before) > _SAME_S
        return used and one.expires_in_s > LEAVING_S

    def done(
        self, model: LoadedModel, loaded: Sequence[LoadedModel], wall: float, *, ok: bool
    ) -> None:
        """The canary has come back; ``loaded``: what is resident now."""
        self._asked[model.name] = next(self._numbers)
        self._failed = "" if ok else model.name
        here = {one.name: one for one in loaded}
        for name in [name for name in self._asked if name not in here]:
            self._asked.pop(name)
            self._left_at.pop(name, None)
        now = here.get(model.name)
        if ok and now is not None and now.expires_in_s is not None:
            self._left_at[model.name] = wall + now.expires_in_s
