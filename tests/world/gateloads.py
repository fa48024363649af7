"""The load gate: clients want a model, core grants, holds or refuses the load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from arbiterd.model.gateway import LoadAnswer, LoadAsk, LoadDone, LoadVerdict
from arbiterd.quantities import MIB

if TYPE_CHECKING:
    from tests.world.world import World

FACTOR, SPARE = 1.03, 256 * MIB  # a prediction is a little more than what comes of it


class Loads:
    """``granted``, ``refused``, ``late``: how the questions ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.granted = self.refused = self.late = 0
        self._count = 0
        self._asks: dict[str, LoadAsk] = {}
        self._dones: list[LoadDone] = []

    def want(self, backend: str, model: str, predicted: int | None = None) -> None:
        """A client asks for a model that is not resident. ``predicted`` None: its size and a little."""
        engine = self.world.engines.get(backend)
        if engine is not None and any(one.name == model for one in engine.loaded()):
            return
        self._count += 1
        size = self.world.natures[backend].models.get(model, 0)
        guess = int(size * FACTOR) + SPARE if predicted is None else predicted
        ask = LoadAsk(f"load-{self._count}", backend, model, guess, self.world.now)
        self._asks[ask.id] = ask
        timeout = self.world.settings.active.backends[backend].queue_timeout_s
        self.world.at(timeout, lambda: self._give_up(ask.id))
        self.world.wake()

    def asks(self) -> tuple[LoadAsk, ...]:
        """Open questions."""
        return tuple(self._asks.values()) if self._asks else ()

    def dones(self) -> tuple[LoadDone, ...]:
        """Loads that have ended since the last tick."""
        if not self._dones:
            return ()
        out, self._dones = tuple(self._dones), []
        return out

    def answered(self, answers: Iterable[LoadAnswer]) -> None:
        """As web/load_requests.py hands them over."""
        for one in answers:
            ask = self._asks.get(one.id)
            if ask is None or one.verdict is LoadVerdict.WAIT:
                continue
            del self._asks[one.id]
            if one.verdict is LoadVerdict.REFUSE:
                self.refused += 1
            else:
                self.granted += 1
                self._begin(ask)

    def _begin(self, ask: LoadAsk) -> None:
        engine = self.world.engines.get(ask.backend)
        if engine is None or not engine.responsive:
            self._end(ask, "refused")
            return
        keep = self.world.settings.active.backends[ask.backend].ollama.keep_alive_s
        self.world.until_answered(
            engine,
            lambda reply: engine.load(ask.model, keep, reply),
            lambda why: self._end(ask, why),
        )

    def _end(self, ask: LoadAsk, detail: str) -> None:
        self._dones.append(LoadDone(ask.id, ask.backend, detail))
        self.world.wake()

    def _give_up(self, name: str) -> None:
        ask = self._asks.pop(name, None)
        if ask is not None:
            self.late += 1
            self._end(ask, "not granted in time")
