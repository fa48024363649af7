"""The four kinds. What they do on a card is told in docs/facts/engines.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arbiterd.engines.flags import value_of
from arbiterd.model.health import LoadedModel
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Kind
from arbiterd.quantities import GIB, MIB
from tests.world.engine import Engine
from tests.world.growth import CHUNK, Growth
from tests.world.hardware import Proc

_MIN_KV = 256 * MIB


class Generic(Engine):
    """Any server: it takes ``weights`` at start."""

    def start(self) -> None:
        """Context, then all of it."""
        if not self.seize(self.main, self.nature.context):
            return
        self.later(self.nature.start_s / 2, lambda: self.seize(self.main, self.nature.weights))
        self.later(self.nature.start_s, self.ready)


class Vllm(Engine):
    """EngineCore holds the memory: weights, a profile run, then the KV cache up to its budget."""

    fixed_pool = True

    def start(self) -> None:
        """The free-memory check comes first."""
        self.core = self.world.spawn(self.cards, self.name, "VLLM::EngineCore")
        self.procs.append(self.core)
        given = value_of(self.spec.argv, "gpu-memory-utilization")
        share = float(given) if given is not None else 0.92
        total = min((c.device.capacity_bytes for c in self.cards), default=0)
        self.budget = int(total * share)
        self.pool = 0
        self.later(self.nature.start_s * 0.1, self._check)

    def growing_proc(self) -> Proc:
        """EngineCore."""
        return self.core

    def _check(self) -> None:
        if not self.cards:
            self.later(self.nature.start_s * 0.9, self.ready)
            return
        free = min(c.free for c in self.cards)
        if free < self.budget:
            self.world.note_oom(self, "start")
            self.die(
                Exit(code=1),
                f"ValueError: Free memory on device cuda:0 ({free / GIB:.2f}/24 GiB) on startup is less"
                f" than desired GPU memory utilization (0.5, {self.budget / GIB:.2f} GiB).",
                "RuntimeError: Engine core initialization failed. See root cause above.",
            )
            return
        if self.seize(self.core, self.nature.context):
            load = self.nature.start_s * 0.5
            one = Growth(
                self.core,
                self.nature.weights / load,
                self.nature.weights,
                lambda: self.oom("start"),
                done=self._profile,
            )
            self.growths.append(one)
            self.world.growths.append(one)

    def _profile(self) -> None:
        """Peak activations for a while; then others' free memory is compared with before."""
        peak = min(GIB, max(0, self.budget - self.nature.weights) // 4)
        others = self._others()
        if self.alive and self.seize(self.core, peak):
            self.later(self.nature.start_s * 0.2, lambda: self._take_cache(peak, others))

    def _others(self) -> int:
        return max(card.used for card in self.cards) - self.core.held

    def _take_cache(self, peak: int, others: int) -> None:
        self.core.give(peak)
        changed = self._others() - others
        if changed < -64 * MIB:
            self.die(
                Exit(code=1),
                "AssertionError: Error in memory profiling. Initial free memory 9.0 GiB, current free"
                " memory 10.0 GiB. This happens when other processes sharing the same container"
                " release GPU memory while vLLM is profiling during initialization.",
            )
            return
        cache = self.budget - self.nature.weights - max(0, changed)
        if cache < _MIN_KV:
            self.world.note_oom(self, "start")
            self.die(Exit(code=1), "ValueError: No available memory for the cache blocks.")
            return
        if self.seize(self.core, cache):
            self.pool = self.nature.weights + cache
            self.later(self.nature.start_s * 0.2, self.ready)

    def sleep(self, done: Callable[[str], None]) -> None:
        """Pause until what runs has ended, then move the weights to the host."""
        flow = self.world.flows[self.name]
        self.up = self.up and not self.faults.sleep_fails
        wait = flow.service_s if flow.in_flight > 0.5 else 0.0

        def asleep() -> None:
            if self.faults.sleep_fails:
                self.up = self.broken = True
                done(
                    "HTTP 500: Call to sleep method failed: Memory usage increased after sleeping."
                )
                return
            self.slept = max(0, self.pool - self.nature.asleep)
            self.core.give(self.slept)
            self.asleep = True
            done("")

        self.later(wait + self.nature.sleep_s, asleep)

    def wake(self, done: Callable[[str], None]) -> None:
        """All of it again, or HTTP 500 and no known state."""

        def awake() -> None:
            if not self.asleep:
                done("")
                return
            if self.core.gone or not self.core.take(self.slept):
                self.world.note_oom(self, "wake")
                self.broken = True
                done("HTTP 500: Call to wake_up method failed: CUDA Error: out of memory at cumem")
                return
            self.asleep = False
            done("")

        self.later(self.nature.wake_s, awake)

    def lost(self, proc: Proc) -> None:
        """Without its core the server ends, with exit code 0 (facts/engines.md)."""
        super().lost(proc)
        if proc is self.core and self.alive:
            self.later(1.0, lambda: self.die(Exit(code=0), "EngineCore died: EngineDeadError"))

    def die(self, exit_: Exit, *words: str, orphans: bool = False) -> None:
        """EngineCore's own end shows as exit code 0 of the server (facts/engines.md)."""
        if words and self.up and "OutOfMemory" in words[0]:
            exit_, words = Exit(code=0), (*words, "EngineCore encountered a fatal error.")
        super().die(exit_, *words, orphans=orphans)


class Tensorflow(Engine):
    """One pool: whole at the first model load, or growing with the load up to its fraction."""

    fixed_pool = True

    def start(self) -> None:
        """Context, then the pool."""
        given = value_of(self.spec.argv, "per-process-gpu-memory-fraction")
        share = float(given) if given is not None else 1.0
        total = min((c.device.capacity_bytes for c in self.cards), default=0)
        self.limit = int(total * share)
        self.full = False
        self.fixed_pool = not self.settings.tensorflow.memory_growth
        if self.seize(self.main, self.nature.context):
            self.later(self.nature.start_s / 2, self._take_pool)
            self.later(self.nature.start_s, self.ready)

    def _take_pool(self) -> None:
        """The allocator tries a tenth less each time: it starts with what it gets."""
        want = self.limit if self.fixed_pool else min(self.limit, self.nature.weights)
        while want > 64 * MIB and not self.main.gone and not self.main.take(want):
            want = want * 9 // 10
            self.words = ("failed to allocate 4.0GiB from device: CUDA_ERROR_OUT_OF_MEMORY",)

    def grow(
        self,
        rate: float,
        total: float,
        *,
        by_load: bool = False,
        chunk: int = CHUNK,
        what: str = "leak",
    ) -> Growth:
        """``what`` "pool": within its pool, whose end is a 429 and no crash. Else: beside the pool."""
        if what != "pool":
            return super().grow(rate, total, by_load=by_load, chunk=chunk, what=what)
        room = max(0, self.limit - (self.held - self.nature.context))
        one = super().grow(rate, min(total, room), by_load=True, chunk=chunk, what="pool")
        one.done = self.pool_full
        return one

    def pool_full(self) -> None:
        """RESOURCE_EXHAUSTED: 429 to clients, and it lives on."""
        self.full = True
        self.world.flows[self.name].refusing = 0.5
        self.words = ("OOM when allocating tensor with shape[64,3,224,224]",)

    def oom(self, what: str) -> None:
        """On a full card its allocator fails within: 429; only a context that fails kills it."""
        if what == "pool":
            self.world.note_oom(self, what)
            self.pool_full()
            return
        super().oom(what)

    def oom_words(self) -> tuple[str, ...]:
        """A handle that could not be made."""
        return ("Could not create cudnn handle: CUDNN_STATUS_NOT_INITIALIZED",)


@dataclass(slots=True, eq=False)
class Model:
    """A resident model and its runner. ``fail``: answers who waits for its load."""

    name: str
    size: int
    proc: Proc
    expires: float
    fail: Callable[[str], None]
    ready: bool = False


class Ollama(Engine):
    """A server without GPU memory, one runner per model."""

    def start(self) -> None:
        """It answers at once."""
        self.models: dict[str, Model] = {}
        self._shown: tuple[LoadedModel, ...] = ()
        self._key: list[tuple[str, bool, int]] = []
        self.later(self.nature.start_s / 4, self.ready)

    def growing_proc(self) -> Proc:
        """The first runner; without one, the server itself."""
        return next((m.proc for m in self.models.values()), self.main)

    def oom(self, what: str) -> None:
        """Its runner dies, the server lives on."""
        self.world.note_oom(self, what)
        self.words = ("cudaMalloc failed: out of memory", "llama-server process has terminated")
        for model in list(self.models.values())[:1]:
            self.drop(model.name)

    def load(self, model: str, keep_s: float, done: Callable[[str], None]) -> None:
        """Evict down to the limit, then load; on an OOM the runner is gone."""
        here = self.models.get(model)
        if here is not None:
            here.expires = self._until(keep_s)
            done("")
            return
        idle = sorted(self.models.values(), key=lambda one: one.expires)
        most = max(1, self.settings.ollama.max_loaded_models)
        for old in idle[: max(0, len(self.models) - most + 1)]:
            self.drop(old.name)
        size = self.nature.models.get(model, 2 * GIB)
        proc = self.world.spawn(self.cards, self.name, f"llama-server --model {model}")
        self.procs.append(proc)
        one = self.models[model] = Model(model, size, proc, self._until(keep_s), done)

        def full() -> None:
            self.world.note_oom(self, "load")
            self.drop(model)

        def loaded() -> None:
            one.ready = True
            self._shown = ()
            self.later(max(0.0, one.expires - self.world.now), lambda: self._expire(model))
            done("")

        # The old model's bytes come back after its runner has gone: Ollama waits for them.
        def begin() -> None:
            if self.models.get(model) is not one:
                done("the load was given up")
                return
            growth = Growth(proc, size / self.nature.load_s, size, full, done=loaded)
            self.growths.append(growth)
            self.world.growths.append(growth)

        self.later(0.6 if idle else 0.0, begin)

    def _until(self, keep_s: float) -> float:
        return self.world.now + (keep_s if keep_s >= 0 else 1e9)

    def _expire(self, name: str) -> None:
        model = self.models.get(name)
        if model is None:
            return
        left = model.expires - self.world.now
        if left > 0:
            self.later(left, lambda: self._expire(name))
        elif self.world.flows[self.name].in_flight > 0.5 and self.busy_model() == name:
            model.expires = self.world.now + 5.0
            self.later(5.0, lambda: self._expire(name))
        else:
            self.drop(name)

    def busy_model(self) -> str:
        """The model that requests are for: the first."""
        return next(iter(self.models), "")

    def lost(self, proc: Proc) -> None:
        """A runner dies alone: the server lives on without the model."""
        model = next((m for m in self.models.values() if m.proc is proc), None)
        if model is None:
            super().lost(proc)
        else:
            self.drop(model.name)

    def drop(self, name: str) -> None:
        """The runner ends."""
        model = self.models.pop(name, None)
        if model is None:
            return
        self._shown = ()
        for growth in self.growths:
            growth.over = growth.over or growth.proc is model.proc
        self.world.end(model.proc, self.faults.lag_s)
        self.procs = [p for p in self.procs if p is not model.proc]
        if not model.ready:
            model.fail("HTTP 500: llama-server process has terminated: signal: killed")

    def unload(self, model: str) -> None:
        """Asynchronous: after what runs has ended; or not at all."""
        if self.faults.ignores_unload or model not in self.models:
            return
        flow = self.world.flows[self.name]
        busy = flow.in_flight > 0.5 and self.busy_model() == model
        self.later(
            self.nature.unload_s + (flow.service_s if busy else 0.0), lambda: self.drop(model)
        )

    def loaded(self) -> tuple[LoadedModel, ...]:
        """/api/ps; expiry to the second."""
        key = [(m.name, m.ready, int(m.expires)) for m in self.models.values()]
        if not self._shown or key != self._key:
            self._key = key
            self._shown = tuple(
                LoadedModel(m.name, m.size, m.size, _left(m.expires - self.world.now))
                for m in self.models.values()
                if m.ready
            )
        return self._shown

    @property
    def serving(self) -> bool:
        """It needs a model."""
        return super().serving and any(m.ready for m in self.models.values())


def _left(seconds: float) -> float | None:
    return None if seconds > 1e8 else max(0.0, round(seconds, 1))


KINDS: dict[Kind, type[Engine]] = {
    Kind.GENERIC: Generic,
    Kind.VLLM: Vllm,
    Kind.TENSORFLOW: Tensorflow,
    Kind.OLLAMA: Ollama,
}
