"""The stand-in Ollama's scheduler (server/sched.go): which models are loaded, in which runner, with
how much on the card. One load at a time; unloading is asynchronous and interrupts nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from arbiterd.quantities import GIB, MIB
from arbiterd.sim.engines.common import CONTEXT_BYTES, Card, Faults
from arbiterd.sim.engines.go_words import Refused, log
from arbiterd.sim.engines.ollama_env import Settings
from arbiterd.sim.engines.ollama_models import Blob, Library, Model
from arbiterd.sim.engines.ollama_options import RunnerOptions
from arbiterd.sim.engines.ollama_runner import Runner

VERSION = "0.33.0"
MIN_VRAM = 457 * MIB
PING_S = 10.0
BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(eq=False, slots=True)
class _Pending:
    """A request that needs a load. ``keep_s`` None: the runner's own duration stays."""

    model: Model
    options: RunnerOptions
    keep_s: float | None
    runner: asyncio.Future[Runner] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Scheduler:
    """Loaded runners, by blob."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.faults = Faults()
        self.library = Library()
        self.card = Card()
        self.loaded: dict[str, Runner] = {}
        self._pending: deque[_Pending] = deque()
        self._arrived = asyncio.Event()
        self._all: set[Runner] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.spawn(self._schedule())

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def version(self) -> str:
        """The version it claims."""
        return str(self.faults.get("version", VERSION))

    @property
    def default_context(self) -> int:
        """OLLAMA_CONTEXT_LENGTH, else by the card's total memory (routes.go)."""
        if self.settings.context_length:
            return self.settings.context_length
        _, total = self.card.sizes()
        return 262144 if total >= 47 * GIB else 32768 if total >= 23 * GIB else 4096

    # -- requests -------------------------------------------------------------------------------
    @asynccontextmanager
    async def using(
        self, model: Model, options: RunnerOptions, keep_s: float | None
    ) -> AsyncIterator[Runner]:
        """A loaded runner for one request. A caller that is cancelled gives up its load.

        Raises:
            Refused: with Ollama's own text.
        """
        if model.blob.broken:
            path = model.blob.path
            log(
                "INFO",
                "sched.go:529",
                "failed to load model metadata",
                model=path,
                error=model.blob.broken,
            )
            raise Refused(500, model.blob.broken)
        runner = await self._runner(_Pending(model, options, keep_s))
        try:
            yield runner
        finally:
            self._finished(runner)

    async def _runner(self, request: _Pending) -> Runner:
        found = self.loaded.get(request.model.blob.digest)
        if found is not None and not await self._needs_reload(found, request):
            return self._use(found, request)
        if len(self._pending) >= self.settings.max_queue:
            raise Refused(503, BUSY)
        self._pending.append(request)
        self._arrived.set()
        try:
            return await request.runner
        except asyncio.CancelledError:
            if request.runner.done() and not request.runner.cancelled():
                if request.runner.exception() is None:
                    self._finished(request.runner.result())
            else:
                request.runner.cancel()
            raise

    async def _needs_reload(self, runner: Runner, request: _Pending) -> bool:
        async with runner.asked:
            if runner.stuck or not runner.options.serves(request.options):
                return True
            return not await runner.ping(float(self.faults.get("ping_s", PING_S)))

    def _use(self, runner: Runner, request: _Pending) -> Runner:
        runner.users += 1
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        if request.keep_s is not None:
            runner.keep_s = request.keep_s
        return runner

    def _finished(self, runner: Runner) -> None:
        runner.users -= 1
        if runner.users:
            return
        if runner.keep_s <= 0:
            self._expire_in(runner, 0.0)
            return
        runner.expires_at = time.time() + runner.keep_s
        self._expire_in(runner, runner.keep_s)

    # -- unloading ------------------------------------------------------------------------------
    def _expire_in(self, runner: Runner, seconds: float) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
        loop = asyncio.get_running_loop()
        runner.timer = loop.call_later(min(seconds, 1e8), self._expired, runner)

    def _expired(self, runner: Runner) -> None:
        """Its time is over. With unload_ignored it stays although: that is what `ollama ps` shows as
        'Stopping...' for ever (ollama #7606).
        """
        runner.timer = None
        if self.loaded.get(runner.model.blob.digest) is not runner:
            return
        if runner.users:
            self._expire_in(runner, 0.01)
            return
        runner.stuck = bool(self.faults.get("unload_ignored")) and not runner.dead.is_set()
        if runner.stuck:
            self._expire_in(runner, 0.05)
            return
        del self.loaded[runner.model.blob.digest]
        self.spawn(self._end(runner))

    async def _end(self, runner: Runner) -> None:
        runner.kill()
        await runner.dead.wait()
        self._all.discard(runner)
        runner.gone.set()

    def unload(self, model: Model) -> None:
        """keep_alive 0 without a prompt: heard at once, done when no request uses it."""
        runner = self.loaded.get(model.blob.digest)
        if runner is None:
            return
        delay_s = float(self.faults.get("unload_delay_s", 0))
        runner.keep_s, runner.expires_at = 0.0, time.time() + delay_s
        if not runner.users:
            self._expire_in(runner, delay_s)
            if not delay_s:
                self._expired(runner)

    def _to_unload(self) -> Runner:
        """The idle one with the shortest keep_alive, else the one with the shortest of all."""
        order = sorted(self.loaded.values(), key=lambda one: (one.keep_s, one.model.blob.digest))
        return next((one for one in order if not one.users), order[0])

    # -- loading --------------------------------------------------------------------------------
    async def _schedule(self) -> None:
        while True:
            while not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
            request = self._pending.popleft()
            try:
                await self._serve(request)
            except Refused as error:
                if not request.runner.done():
                    request.runner.set_exception(error)

    async def _serve(self, request: _Pending) -> None:
        while not request.runner.cancelled():
            going = [one for one in self._all if one not in self.loaded.values()]
            for one in going:
                await one.gone.wait()
            found = self.loaded.get(request.model.blob.digest)
            if found is not None:
                if not await self._needs_reload(found, request):
                    break
                unload = found
            elif self.loaded and (
                len(self.loaded) >= self.settings.max_loaded or self._crowded(request)
            ):
                unload = self._to_unload()
            else:
                found = await self._load(request)
                break
            unload.keep_s = 0.0
            if not unload.users:
                self._expire_in(unload, 0.0)
            await unload.gone.wait()
        else:
            return
        if found is not None and not request.runner.cancelled():
            request.runner.set_result(self._use(found, request))

    def _crowded(self, request: _Pending) -> bool:
        """Predicted use over 80 % of what is free: its own models make room first."""
        wanted = self._size(request.model.blob, request.options)
        free, _ = self.card.sizes()
        return self.card.present and request.options.num_gpu != 0 and wanted > 0.8 * free

    def _size(self, blob: Blob, options: RunnerOptions) -> int:
        weights = int(self.faults.get("weights_bytes", blob.weights))
        return weights + blob.kv_per_token * options.num_ctx * self.settings.parallel + 200 * MIB

    async def _load(self, request: _Pending) -> Runner | None:
        model, options = request.model, request.options
        size = self._size(model.blob, options)
        plan = {
            "size": size,
            "vram_bytes": self._fit(size, options, model.blob),
            "load_s": float(self.faults.get("load_s", self.settings.load_s)),
            "slots": self.settings.parallel,
        }
        argv = options.argv(
            model.blob, random.randint(32768, 60999), self.settings.parallel, os.environ
        )
        command = " ".join(["llama-server", *argv])
        log("INFO", "llama_server.go:433", "starting llama-server", cmd=command)
        runner = Runner.start(model, options, argv, plan)
        runner.keep_s = self.settings.keep_alive_s
        self._all.add(runner)
        self.spawn(self._follow(runner))
        ready = asyncio.ensure_future(runner.ready.wait())
        dead = asyncio.ensure_future(runner.dead.wait())
        waits: set[asyncio.Future[object]] = {ready, dead, request.runner}  # type: ignore[arg-type]
        limit = self.settings.load_timeout_s or None
        await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        dead.cancel()
        if runner.ready.is_set() and not runner.dead.is_set() and not request.runner.cancelled():
            self.loaded[model.blob.digest] = runner
            return runner
        await self._end_of_load(request, runner)
        return None

    async def _follow(self, runner: Runner) -> None:
        """Until it is gone. A dead one stays listed until the next request for its model finds out;
        after a full card nothing that is idle stays (sched.go: expiring loaded models).
        """
        await runner.listen()
        if not runner.full:
            return
        words = "runtime OOM detected; expiring loaded models"
        log("WARN", "sched.go:1071", words, model=runner.model.blob.path)
        for one in self.loaded.values():
            one.keep_s = 0.0
            if not one.users:
                self._expire_in(one, 0.0)

    async def _end_of_load(self, request: _Pending, runner: Runner) -> None:
        """Nobody wants it any more, it took too long, or it died.

        Raises:
            Refused: 500 in Ollama's words.
        """
        died = runner.dead.is_set()
        await self._end(runner)
        if request.runner.cancelled():
            words = "client connection closed before llama-server finished loading, aborting load"
            log("INFO", "llama_server.go:1301", words)
            return
        text = "timed out waiting for llama-server to start - "
        if died:
            number, how = runner.how_it_ended()
            more = "" if number else ": cudaMalloc failed: out of memory"
            text = f"llama-server process has terminated: {how}{more}"
        log("INFO", "sched.go:641", "Load failed", model=request.model.blob.path, error=text)
        raise Refused(500, text)

    def _fit(self, size: int, options: RunnerOptions, blob: Blob) -> int:
        """Bytes that go to the GPU: all, a part, or none. num_gpu below 0: llama.cpp's fit decides;
        a number of layers (-ngl) bypasses it.
        """
        if not self.card.present or options.num_gpu == 0:
            return 0
        if options.num_gpu > 0:
            return size * min(options.num_gpu, blob.layers + 1) // (blob.layers + 1)
        free, _ = self.card.sizes()
        if self.version() < "0.30":
            margin = int(os.environ.get("OLLAMA_GPU_OVERHEAD") or 0)
        else:
            margin = int(os.environ.get("LLAMA_ARG_FIT_TARGET") or 1024) * MIB
        room = free - margin - CONTEXT_BYTES
        if room >= size:
            return size
        return room if room >= MIN_VRAM else 0

    def stop(self) -> None:
        """SIGTERM: requests are cut, runners killed, exit 0."""
        for runner in self._all:
            runner.kill()
        os._exit(0)
