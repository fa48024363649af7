"""What can happen in a world: the verbs of a scenario's events (tests/core/scenarios/*.toml).

Each method is a verb, its keyword arguments are the event's other keys. Sizes and durations are
text with a unit, as in the configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from arbiterd.errors import ArbiterError
from arbiterd.model.actions import Verb
from arbiterd.model.devices import XidEvent
from arbiterd.model.launch import Exit
from arbiterd.quantities import parse_duration, parse_size
from tests.world.engine import Engine
from tests.world.growth import CHUNK, Growth
from tests.world.hardware import Card, Proc
from tests.world.world import World

FOR_EVER = "1000h"
ALL_OF_IT = "1000000GiB"


class Script:
    """Verbs on one world. ``names`` of strangers are the scenario's own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._strangers: dict[str, Proc] = {}

    def do(self, what: str, given: Mapping[str, Any]) -> None:
        """Do one event now.

        Raises:
            ArbiterError: there is no such verb, or it does not take these keys.

        """
        verbs = {
            name: verb
            for name, verb in inspect.getmembers(self, inspect.ismethod)
            if not name.startswith("_") and name != "do"
        }
        verb: Callable[..., None] | None = verbs.get(what)
        if verb is None:
            msg = f"there is no event {what!r}; there are {', '.join(sorted(verbs))}"
            raise ArbiterError(msg)
        try:
            inspect.signature(verb).bind(**given)
        except TypeError as error:
            msg = f"event {what}: {error}; it takes {inspect.signature(verb)}"
            raise ArbiterError(msg) from None
        verb(**given)

    def _engine(self, name: str) -> Engine | None:
        return self._world.engines.get(name)

    def _card(self, index: int) -> Card:
        return list(self._world.cards.values())[index]

    # -- backends ------------------------------------------------------------------------------
    def load(self, backend: str, in_flight: float) -> None:
        """So many requests are wanted at a time from now on."""
        self._world.flows[backend].offered = float(in_flight)

    def leak(
        self,
        backend: str,
        rate: str,
        total: str = ALL_OF_IT,
        *,
        by_load: bool = False,
        chunk: str = "",
    ) -> None:
        """It grows by ``rate`` a second; ``by_load``: only as requests run."""
        engine = self._engine(backend)
        if engine is not None and engine.alive:
            size = parse_size(chunk) if chunk else CHUNK
            engine.grow(parse_size(rate), parse_size(total), by_load=by_load, chunk=size)

    def sawtooth(self, backend: str, size: str, every: str, times: int) -> None:
        """It takes ``size`` over half of ``every``, and gives it back at once, again and again."""
        engine, period = self._engine(backend), parse_duration(every)
        if engine is None or not engine.alive or times <= 0:
            return
        total = parse_size(size)
        growth = engine.grow(total / (period / 2), total)

        def back() -> None:
            growth.over = True
            growth.proc.give(growth.taken)
            self.sawtooth(backend, size, every, times - 1)

        engine.later(period, back)

    def spike(self, backend: str, size: str, last: str = "500ms") -> None:
        """It takes ``size`` at once and gives it back after a while."""
        engine = self._engine(backend)
        if engine is None or not engine.alive:
            return
        proc, taken = engine.growing_proc(), parse_size(size)
        if engine.seize(proc, taken, "spike"):
            engine.later(parse_duration(last), lambda: proc.give(taken))

    def mend(self, backend: str) -> None:
        """It grows no more, and gives back what it holds above its cap."""
        engine = self._engine(backend)
        if engine is not None and engine.alive:
            for growth in engine.growths:
                growth.over = growth.over or not growth.planned
            engine.growing_proc().give(max(0, engine.held - engine.cap))

    def fill_pool(self, backend: str, rate: str) -> None:
        """TensorFlow's own pool fills up with the load, to its 429."""
        engine = self._engine(backend)
        if engine is not None and engine.alive:
            engine.grow(parse_size(rate), parse_size(ALL_OF_IT), by_load=True, what="pool")

    def die(
        self,
        backend: str,
        code: int = 1,
        signal: int = 0,
        words: str = "",
        *,
        orphans: bool = False,
    ) -> None:
        """Its main process ends by itself."""
        engine = self._engine(backend)
        if engine is not None and engine.alive:
            exit_ = Exit(signal=signal) if signal else Exit(code=code)
            engine.die(exit_, *([words] if words else []), orphans=orphans)

    def kill_child(self, backend: str) -> None:
        """The process that holds its memory dies alone (EngineCore, a runner)."""
        engine = self._engine(backend)
        if engine is not None and engine.alive and engine.growing_proc() is not engine.main:
            engine.lost(engine.growing_proc())

    def orphan(self, backend: str, size: str) -> None:
        """A leftover of it that no unit holds."""
        world = self._world
        cards = tuple(world.cards[uuid] for uuid in world.placement(backend).devices)
        world.spawn(cards, backend, f"left over from {backend}").take(parse_size(size))

    def crash_start(self, backend: str, times: int, words: str = "", code: int = 1) -> None:
        """Its next starts fail."""
        fault = self._world.faults[backend]
        fault.crash_start, fault.crashes_left = (Exit(code=code), words), times

    def fault(self, backend: str, name: str, *, on: bool = True) -> None:
        """Switch one of Faults: ignores_unload, ignores_term, sleep_fails, hung, start_hangs, sick."""
        fault = self._world.faults[backend]
        if not isinstance(getattr(fault, name, None), bool):
            msg = f"there is no fault {name!r}"
            raise ArbiterError(msg)
        setattr(fault, name, on)

    def slow_release(self, backend: str, last: str) -> None:
        """Its bytes come back so long after its processes."""
        self._world.faults[backend].lag_s = parse_duration(last)

    def want(self, backend: str, model: str, predicted: str = "") -> None:
        """A client asks for a model that is not resident."""
        guess = parse_size(predicted) if predicted else None
        self._world.loads.want(backend, model, guess)

    def warm(self, backend: str, model: str, keep: str = "10min") -> None:
        """A model is resident, without anybody having asked the arbiter (an older request)."""
        engine = self._engine(backend)
        if engine is not None and engine.alive:
            engine.load(model, parse_duration(keep), lambda _why: None)

    # -- strangers -----------------------------------------------------------------------------
    def stranger(
        self, name: str, size: str, over: str = "", last: str = FOR_EVER, card: int = 0
    ) -> None:
        """A foreign process takes ``size``, at once or ``over`` a while, and leaves after ``last``."""
        world, total = self._world, parse_size(size)
        proc = self._strangers.get(name)
        if proc is None or proc.pid not in world.pids:
            proc = world.spawn((self._card(card),), "", f"python3 {name}.py")
        self._strangers[name] = one = proc

        def gone() -> None:  # also by an allocation that does not fit
            if one.pid in world.pids:
                world.end(one)

        if over:
            world.growths.append(Growth(proc, total / parse_duration(over), total, gone))
        elif not proc.take(total):
            gone()
        world.at(parse_duration(last), gone)

    def flap(self, name: str, size: str, on: str, off: str, times: int, card: int = 0) -> None:
        """A foreign process comes and goes."""
        if times <= 0:
            return
        self.stranger(name, size, last=on, card=card)
        again = parse_duration(on) + parse_duration(off)
        self._world.at(again, lambda: self.flap(name, size, on, off, times - 1, card))

    def leave(self, name: str) -> None:
        """It ends."""
        proc = self._strangers.get(name)
        if proc is not None and proc.pid in self._world.pids:
            self._world.end(proc)

    # -- the card and its driver ---------------------------------------------------------------
    def blind(self, last: str) -> None:
        """NVML hangs for so long."""
        self._world.nvml.hung_until = self._world.now + parse_duration(last)

    def stale(self, last: str) -> None:
        """NVML answers, with the same old sample."""
        self._world.nvml.stale_until = self._world.now + parse_duration(last)

    def glitch(self, free: str, card: int = 0) -> None:
        """One reading says that so little is free, whatever is true."""
        one = self._card(card)
        self._world.nvml.glitches[one.device.uuid] = one.device.capacity_bytes - parse_size(free)

    def xid(self, code: int, card: int = 0, backend: str = "") -> None:
        """The driver reports an error; ``backend``: whose process it names."""
        engine = self._engine(backend)
        pid = engine.growing_proc().pid if engine is not None else 0
        uuid, now = self._card(card).device.uuid, self._world.now
        text = f"NVRM: Xid (PCI:0000:01:00): {code}, pid={pid}"
        self._world.nvml.xids.append(XidEvent(uuid, code, now, pid, text))
        if backend:
            self._world.monitor.excuse(backend)
        self._world.wake()

    def lose(self, card: int = 0, *, on: bool = True) -> None:
        """The card falls off the bus, or is back."""
        self._card(card).lost = on

    def shift_index(self, shift: int) -> None:
        """NVML numbers the cards anew."""
        self._world.shift_index(shift)

    # -- people and the daemon -----------------------------------------------------------------
    def ask(self, verb: str, backend: str = "") -> None:
        """An operator asks: drain, resume, restart, sleep, wake, reset-cap, stop-all."""
        self._world.ask(Verb(verb), backend)

    def mode(self, name: str) -> None:
        """A reload with another mode line."""
        self._world.reload(replace(self._world.settings, mode=name))

    def restart_daemon(self, away: str = "2s") -> None:
        """The daemon is restarted; engines go on."""
        self._world.restart_daemon(parse_duration(away))
