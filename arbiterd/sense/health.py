"""Probing engines: one thread per probed backend, one more while its canary is out.

Core orders what is to be probed; results carry a sequence number and their time. A result of an
earlier invocation (another fence) is dropped, one older than STALE_S is unknown.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from arbiterd.aside import aside
from arbiterd.engines import engine_of
from arbiterd.engines.ollama_names import is_listed
from arbiterd.model.health import (
    HealthObservation,
    HttpProbe,
    HttpReply,
    LoadedModel,
    ProbeOrder,
    ProbeResult,
    Progress,
    Trial,
)
from arbiterd.model.reading import Known, Reading, Unknown
from arbiterd.model.settings import BackendSettings, Settings
from arbiterd.secrets.keyring import Keyring
from arbiterd.secrets.redact import Redactor
from arbiterd.sense.canaries import sent, tried
from arbiterd.sense.http import NO_DESCRIPTOR, Via, ask, session, unix_session
from arbiterd.sense.turns import Turns
from arbiterd.sense.weighing import Weigh, weighed

FAST_S, SLOW_S = 0.25, 1.0
COUNTERS_S = 2.0  # a third of the time after which standing still is judged
STALE_S = 10.0
SERVED_S = 10.0  # how long an adapter may be loaded before the unified door knows it
DOOR_S, DOOR_AGAIN_S = 2.0, 0.5  # a client's way: while it is open, and while it is not
_DOOR_HEADER = "x-arbiter-probe"  # gateway/probes.py reads it
_NOT_YET = "not probed yet"


@dataclass(slots=True)
class _Target:
    """What one thread probes, and its newest results."""

    order: ProbeOrder
    backend: BackendSettings
    wake: threading.Event = field(default_factory=threading.Event)
    door_wake: threading.Event = field(default_factory=threading.Event)
    stop: bool = False
    canary_out: bool = False
    turns: Turns = field(default_factory=Turns)
    about: dict[tuple[str, str], HttpReply] = field(default_factory=dict)
    alive: Reading[ProbeResult] = Unknown(_NOT_YET, 0.0)
    asked_at: float = 0.0  # of ``alive``
    good: Reading[ProbeResult] = Unknown(_NOT_YET, 0.0)  # the last one that was well
    canary: Reading[ProbeResult] = Unknown(_NOT_YET, 0.0)
    progress: Reading[Progress] = Unknown(_NOT_YET, 0.0)
    loaded: Reading[tuple[LoadedModel, ...]] = Unknown(_NOT_YET, 0.0)
    door: Reading[ProbeResult] | None = None
    tried: str = ""
    trial: Trial | None = None
    bodies: dict[str, str] = field(default_factory=dict)
    warm_bytes: int | None = None
    served: Reading[tuple[str, ...]] | None = None
    served_at: float = 0.0


class Prober:
    """``order`` and ``latest`` are the loop's; threads do the waiting. ``door``: HAProxy's socket for
    the second probe, None without doors. ``weigh``: see sense/weighing.py.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        door: Path | None = None,
        keys: Keyring | None = None,
        redactor: Redactor | None = None,
        weigh: Weigh | None = None,
    ) -> None:
        self._weigh = weigh
        self._hide = (redactor or Redactor()).text
        self._keys = keys or Keyring()
        self._on_change = on_change
        self._door = door
        self._lock = threading.Lock()
        self._targets: dict[str, _Target] = {}
        self._seq = itertools.count(1)
        self._awake_at = -1e9

    def order(self, orders: Sequence[ProbeOrder], settings: Settings) -> None:
        """Probe these from now on, and nothing else."""
        wanted = {one.backend: one for one in orders}
        backends = settings.active.backends
        with self._lock:
            for name in list(self._targets):
                old, new = self._targets[name], wanted.get(name)
                same = new and new.fence == old.order.fence and new.url == old.order.url
                if not same or backends.get(name) is not old.backend:
                    _end(old)
                    del self._targets[name]
            for name, one in wanted.items():
                if name not in self._targets and name in backends:
                    self._start(one, backends[name])
                elif name in self._targets:
                    self._update(self._targets[name], one)

    def _start(self, order: ProbeOrder, backend: BackendSettings) -> None:
        target = self._targets[order.backend] = _Target(order, backend)
        name = f"probe-{order.backend}"
        aside(self._run, target, name=name)
        if self._door is not None:
            target.door = Unknown(_NOT_YET, 0.0)
            aside(self._run_door, target, self._door, name=f"door-{order.backend}")

    def _update(self, target: _Target, order: ProbeOrder) -> None:
        if order.fast and not target.order.fast:
            target.wake.set()
        target.order = order
        if order.trial and target.tried != order.trial:
            target.tried = order.trial
            aside(self._trial, target, order.trial, name=f"trial-{order.backend}")
        if order.canary_due and not target.canary_out:
            target.canary_out = True
            aside(self._canary, target, name=f"canary-{order.backend}")

    def latest(self, now: float) -> dict[str, HealthObservation]:
        """Newest results by backend."""
        with self._lock:
            return {
                name: HealthObservation(
                    backend=name,
                    alive=self._judged(target, now),
                    canary=target.canary,
                    progress=_young(target.progress, now, self._awake_at),
                    loaded=_young(target.loaded, now, self._awake_at),
                    door=target.door,
                    trial=target.trial,
                    served=target.served,
                    warm_bytes=target.warm_bytes,
                )
                for name, target in self._targets.items()
            }

    def excuse(self, now: float) -> None:
        """The loop was held up until ``now``, and its probes with it: a question asked before counts
        only if it was answered well.
        """
        with self._lock:
            self._awake_at = now

    def _judged(self, target: _Target, now: float) -> Reading[ProbeResult]:
        alive = target.alive
        failed = isinstance(alive, Known) and not alive.value.verdict.ok
        if failed and target.asked_at < self._awake_at and isinstance(target.good, Known):
            alive = target.good
        return _young(alive, now, self._awake_at)

    def close(self) -> None:
        """Let every thread end; none is waited for longer than its probe."""
        with self._lock:
            for target in self._targets.values():
                _end(target)
            self._targets.clear()

    # -- threads -------------------------------------------------------------------------------
    def _run(self, target: _Target) -> None:
        with session(self._hide) as via:
            counters_at = 0.0
            while not target.stop:
                began = time.monotonic()
                target.wake.clear()
                # by a new connection, as clients come: an engine that has closed its port may go on
                # answering on an old one
                via.clear()
                good = self._alive(target, via)
                every = FAST_S if target.order.fast else COUNTERS_S
                if good and began - counters_at >= every * 0.9:
                    counters_at = began
                    self._counters(target, via)
                period = FAST_S if target.order.fast else SLOW_S
                target.wake.wait(max(0.01, period - (time.monotonic() - began)))

    def _run_door(self, target: _Target, path: Path) -> None:
        """The health URL on a client's way, while the engine itself answers it."""
        engine = engine_of(target.backend.kind)
        probes = engine.ready_probes(target.backend)
        named = {_DOOR_HEADER: target.order.backend}
        via = unix_session(path, self._hide)
        while not target.stop:
            period = FAST_S
            if isinstance(target.alive, Known) and target.alive.value.verdict.ok:
                replies = [ask(via, "", probe, named) for probe in probes]
                if any(reply.error == NO_DESCRIPTOR for reply in replies):
                    target.door_wake.wait(DOOR_AGAIN_S)
                    continue
                verdict = engine.judge_ready(target.backend, replies)
                latency = max(reply.latency_ms for reply in replies)
                changed = _ok(target.door) is not verdict.ok
                result = ProbeResult(next(self._seq), verdict, latency)
                target.door = Known(result, time.monotonic())
                period = DOOR_S if verdict.ok else DOOR_AGAIN_S
                if changed or not verdict.ok:
                    self._on_change()
            target.door_wake.wait(period)
        via.close()

    def _alive(self, target: _Target, via: Via) -> bool:
        engine = engine_of(target.backend.kind)
        probes = engine.ready_probes(target.backend)
        as_door = _as_door(engine.door_host, target.order.url) | self._keys.bearer(target.backend)
        began = time.monotonic()
        replies = [ask(via, target.order.url, probe, as_door) for probe in probes]
        if any(reply.error == NO_DESCRIPTOR for reply in replies):
            return False  # our own trouble: what was read last stays, until it is too old
        if engine.canary(target.backend, ()) is None:  # nothing else of it is asked
            for reply in replies:
                self._keys.heard(target.backend.name, reply.status)
        verdict = engine.judge_ready(target.backend, replies)
        latency = max((reply.latency_ms for reply in replies), default=0.0)
        first_good = verdict.ok and not isinstance(target.alive, Known)
        fast = target.order.fast
        newest = Known(ProbeResult(next(self._seq), verdict, latency), time.monotonic())
        with self._lock:
            target.alive, target.asked_at = newest, began
            target.good = newest if verdict.ok else target.good
        if first_good or fast:
            self._on_change()
        return verdict.ok

    def _counters(self, target: _Target, via: Via) -> None:
        engine = engine_of(target.backend.kind)
        progress = engine.progress_probe(target.backend)
        if progress is not None:
            reply = ask(via, target.order.url, progress, self._keys.bearer(target.backend))
            read = engine.read_progress(reply)
            target.progress = _reading(read, reply)
        self._served(target, via)
        if engine.loaded_probe(target.backend) is not None:
            target.loaded = self._loaded(target, via)

    def _loaded(self, target: _Target, via: Via) -> Reading[tuple[LoadedModel, ...]]:
        """What is resident. Its time is that of the question: a load may end before the answer."""
        engine = engine_of(target.backend.kind)
        probe = engine.loaded_probe(target.backend)
        began = time.monotonic()
        if probe is None:
            return Unknown("it lists no models", began)
        reply = ask(via, target.order.url, probe, self._keys.bearer(target.backend))
        models = engine.read_loaded(reply, time.time())
        if models is None:
            return Unknown(_plain(reply), began)
        if target.warm_bytes is None and self._weigh is not None:
            target.warm_bytes = weighed(via, target.order.url, target.backend, models, self._weigh)
        told = tuple(self._told(target, via, one) for one in models)
        return Known(self._with_warm(target, via, told), began)

    def _with_warm(
        self, target: _Target, via: Via, loaded: tuple[LoadedModel, ...]
    ) -> tuple[LoadedModel, ...]:
        """Another name of the warm model's file may be listed in its place: a runner has one name."""
        warm = engine_of(target.backend.kind).warm_model(target.backend)
        if not warm or not loaded or is_listed(warm, [one.name for one in loaded]):
            return loaded
        mine = self._told(target, via, LoadedModel(warm, 0, 0)).runner
        return tuple(
            replace(one, also=(warm,)) if mine and one.runner == mine else one for one in loaded
        )

    def _told(self, target: _Target, via: Via, model: LoadedModel) -> LoadedModel:
        """With what the engine tells of it elsewhere, asked once."""
        engine = engine_of(target.backend.kind)
        key = (model.name, model.digest)
        about = target.about.get(key)
        probe = engine.about_probe(target.backend, model.name)
        if about is None and probe is not None:
            about = ask(via, target.order.url, probe)
            if about.status == 200:
                target.about[key] = about
        return model if about is None else engine.read_about(model, about)

    def _trial(self, target: _Target, model: str) -> None:
        """One canary, once; its memory is core's to look at."""
        with session(self._hide) as via:
            ok, detail = tried(via, target.backend, target.order.url, model, target.bodies)
        if detail == NO_DESCRIPTOR:
            target.tried = ""  # the next order asks again
            return
        target.trial = Trial(model, ok, detail, time.monotonic())
        self._on_change()

    def _served(self, target: _Target, via: Via) -> None:
        """Names change rarely; a list that was read stays until another one is."""
        engine = engine_of(target.backend.kind)
        probe = engine.served_probe(target.backend)
        now = time.monotonic()
        if probe is None or (target.served is not None and now - target.served_at < SERVED_S):
            return
        target.served_at = now
        reply = ask(via, target.order.url, probe, self._keys.bearer(target.backend))
        self._keys.heard(target.backend.name, reply.status)
        names = engine.read_served(reply)
        if names is not None:
            target.served = Known(names, now)

    def _canary(self, target: _Target) -> None:
        engine = engine_of(target.backend.kind)
        try:
            if engine.trials is not None:
                self._suspected(target)
                return
            with session(self._hide) as via:
                loaded = self._turn(target, via)
                probe = engine.canary(target.backend, loaded)
                if probe is None or target.stop:
                    return
                timed = _within(probe, engine.canary_timeout_s)
                reply = ask(via, target.order.url, timed, self._keys.bearer(target.backend))
                if reply.error == NO_DESCRIPTOR:
                    return
                self._keys.heard(target.backend.name, reply.status)
                verdict = engine.judge_canary(target.backend, reply)
                result = ProbeResult(next(self._seq), verdict, reply.latency_ms)
                target.canary = Known(result, time.monotonic())
                if loaded:
                    self._on_change()
                    now = self._loaded(target, via)
                    rest = now.value if isinstance(now, Known) else ()
                    target.turns.done(loaded[0], rest, time.time(), ok=verdict.ok)
        finally:
            target.canary_out = False
            self._on_change()

    def _turn(self, target: _Target, via: Via) -> tuple[LoadedModel, ...]:
        """The resident model that is asked next, by a list of this moment: one that has left since
        would be loaded by the question.
        """
        loaded = self._loaded(target, via)
        one = target.turns.choose(loaded.value, time.time()) if isinstance(loaded, Known) else None
        return () if one is None else (one,)

    def _suspected(self, target: _Target) -> None:
        """The kept canaries, one after the other until one does not come back in time."""
        engine, order = engine_of(target.backend.kind), target.order
        with session(self._hide) as via:
            replies = [
                reply
                for model in order.canaries
                if (reply := sent(via, target.backend, order.url, model, target.bodies))
            ]
        answers = [one for one in replies if one.status or one.timed_out]
        if answers and not target.stop:
            verdicts = [engine.judge_canary(target.backend, one) for one in answers]
            worst = next((one for one in verdicts if not one.ok), verdicts[0])
            latency = max(one.latency_ms for one in answers)
            result = ProbeResult(next(self._seq), worst, latency)
            target.canary = Known(result, time.monotonic())


def _end(target: _Target) -> None:
    target.stop = True
    target.wake.set()
    target.door_wake.set()


def _ok(reading: Reading[ProbeResult] | None) -> bool | None:
    return reading.value.verdict.ok if isinstance(reading, Known) else None


def _as_door(host: str, url: str) -> dict[str, str]:
    """The Host that the door sends (gateway/rules.own_host): what refuses it refuses every client."""
    return {"Host": f"{host}:{url.rsplit(':', 1)[-1]}"} if host else {}


def _within(probe: HttpProbe, limit_s: float) -> HttpProbe:
    if probe.timeout_s <= limit_s:
        return probe
    return HttpProbe(probe.method, probe.path, probe.body, limit_s, probe.headers)


def _reading(progress: Progress | None, reply: HttpReply) -> Reading[Progress]:
    now = time.monotonic()
    return Unknown(_plain(reply), now) if progress is None else Known(progress, now)


def _plain(reply: HttpReply) -> str:
    return reply.error or f"HTTP {reply.status}"


T = TypeVar("T")


def _young(reading: Reading[T], now: float, awake_at: float) -> Reading[T]:
    if isinstance(reading, Known) and now - max(reading.at, awake_at) > STALE_S:
        return Unknown(f"last answer {now - reading.at:.0f} s ago", reading.at)
    return reading
