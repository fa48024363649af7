"""The load gate's bookkeeping of one Ollama: what is resident, which loads are asked for.

A load is done by the gate itself, once for all who wait for it: a client that gives up would make
Ollama abort it (docs/facts/engines.md), and a held load must use up no in-flight slot.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from arbiterd.engines import ollama_names as names
from arbiterd.engines.ollama import EMBED_ROUTES
from arbiterd.fit import from_ollama_api
from arbiterd.loadgate import abilities, ollama_body
from arbiterd.loadgate.arbiter_client import Arbiter
from arbiterd.loadgate.library import Known, Library, Refused, Resident

__all__ = ["Loads", "Refused", "Ticket"]

RESIDENT_S = 0.25  # how long a list of resident models is believed
LEAVING_S = 2.0  # one that expires so soon is looked at again
STALE_S = 10.0  # and so long while no new list comes: /api/ps may block during an unload
_LOOK_S = 6.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request: the body to send, or ``answer``: what is said without asking Ollama."""

    sent: ollama_body.Sent
    answer: dict[str, Any] | None = None


class Loads:
    """One Ollama behind the gate."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._config: dict[str, Any] = {}
        self._library = Library(name)
        self._arbiter = Arbiter(name)
        self._resident: tuple[Resident, ...] = ()
        self._looked_at = -1e9
        self._looking: asyncio.Task[None] | None = None
        self._under_way: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._requests: Counter[tuple[str, int]] = Counter()  # admitted and not answered yet
        self._leaving: set[str] = set()  # runners that leave when their last request has ended
        self._contexts: dict[tuple[str, int], int] = {}  # what /api/ps said after our own load
        self._held = 0
        self._copied: set[str] = set()
        self.device_bytes = 0  # what its devices hold, from the live map; 0 unknown

    def configure(self, config: dict[str, Any], socket: str) -> None:
        """Settings of now."""
        if config != self._config:
            self._library.forget()
            self._copied.clear()
        self._config = config
        self._library.engine, self._arbiter.socket = config["engine"], socket

    # -- names ---------------------------------------------------------------------------------
    def own_name(self, model: str) -> str:
        """Ollama's own name of a model (an alias of failover goes to its source).

        Raises:
            Refused: not on the allow-list.

        """
        if not model:
            msg = "the body names no model"
            raise Refused(msg, status=400)
        if names.parse(model) is None:
            msg = f"invalid model name {model!r}"
            raise Refused(msg, status=400)
        if not self.is_allowed(model):
            has = ", ".join(self._config["models"])
            msg = f"the model {model!r} is not on the allow-list of {self._name}; it has {has}"
            raise Refused(msg, status=404)
        return model

    def is_allowed(self, model: str) -> bool:
        """Whether it may be used here."""
        allowed = list(self._config["models"])
        if not allowed:
            return True
        for alias in self._config["aliases"]:
            allowed += [alias["name"], alias["source"]]
        return names.is_listed(model, allowed)

    def _source(self, model: str) -> str:
        aliases = self._config["aliases"]
        return next((a["source"] for a in aliases if names.same_model(a["name"], model)), "")

    def _clamp(self, known: Known, model: str) -> ollama_body.Clamp:
        """What a body for this model gets."""
        length = self._config["context_length"]
        options = known.about.options(length)
        return ollama_body.Clamp(
            context_length=options["num_ctx"],
            keep_alive_s=self._config["keep_alive_s"],
            warm=model if self._is_warm(model) else "",
            num_gpu=options["num_gpu"],
            endless=known.about.endless,
            leaving=known.runner in self._leaving,
        )

    def _is_warm(self, model: str) -> bool:
        models = self._config["models"]
        return bool(models) and names.same_model(self._source(model) or model, models[0])

    # -- admission -----------------------------------------------------------------------------
    @asynccontextmanager
    async def admitted(self, body: ollama_body.Body, path: str) -> AsyncIterator[Ticket]:
        """Hold a request until its model is resident; while the block lasts it counts as under way.

        Raises:
            Refused: not here, never, or not within ``queue_timeout``.
            BadBody: it cannot be clamped.

        """
        model = self.own_name(body.model)
        v1 = path.startswith("/v1/")
        known = await self._known(model)
        if v1:
            self._fits_v1(known, model)
        unload = ollama_body.unload(body, path)
        if unload is ollama_body.Unload.BARE:
            yield await self._unload(known, model, body, path)
            self._looked_at = -1e9
            return
        clamp = self._clamp(known, model)
        sent = ollama_body.clamped(body, clamp, v1=v1, path=path)  # bad: before any load
        if known.about.embeds and path not in EMBED_ROUTES:
            yield Ticket(sent)  # Ollama refuses it before it loads anything
            return
        lacks = abilities.missing(body, path, known.about.can)
        if lacks == "vision":
            raise Refused(abilities.NO_IMAGES, status=400)
        if lacks:
            yield Ticket(sent)  # likewise
            return
        ends = unload is ollama_body.Unload.AFTER
        await self._admit(known, model, loads=not ends)
        run = self._run(known)
        self._requests[run] += 1
        try:
            if ends:
                await self._mark(known, model)
            elif ollama_body.keeps(body, path):
                self._leaving.discard(known.runner)
            now = self._clamp(known, model)
            if now != clamp:  # asked to leave meanwhile, or configured anew
                sent = ollama_body.clamped(body, now, v1=v1, path=path)
            yield Ticket(sent)
        finally:
            self._requests[run] -= 1
            if known.runner in self._leaving:
                self._looked_at = -1e9
            if not self._busy(known.runner):
                self._leaving.discard(known.runner)

    def _busy(self, runner: str) -> bool:
        return any(count > 0 and run[0] == runner for run, count in self._requests.items())

    def _run(self, known: Known) -> tuple[str, int]:
        return known.runner, known.about.context(self._config["context_length"])

    async def _known(self, model: str) -> Known:
        """What Ollama tells of it; the substitute's name is made first.

        Raises:
            Refused: it has no such model, or does not answer.

        """
        source = self._source(model)
        try:
            if source and names.key(model) in self._copied:
                with suppress(Refused):  # `ollama rm`, or another store: it is made again
                    return await self._library.known(model)
            if source:
                await self._copy(source, model)
            return await self._library.known(model)
        except (aiohttp.ClientError, TimeoutError) as error:
            msg = f"{self._name} does not answer: {type(error).__name__}"
            raise Refused(msg) from None

    async def _mark(self, known: Known, model: str) -> None:
        """It leaves when its last request has ended, and nobody is to bring it back before that."""
        if self._busy(known.runner):
            self._leaving.add(known.runner)
        if await self._shares_warm(known, model):
            await self._arbiter.unloaded(self._config["models"][0])

    async def _shares_warm(self, known: Known, model: str) -> bool:
        """Whether the warm model goes with it: it is that one, or another name of its file."""
        models = self._config["models"]
        if not models or self._is_warm(model):
            return bool(models)
        with suppress(Refused, aiohttp.ClientError, TimeoutError):
            return (await self._library.known(models[0])).runner == known.runner
        return False

    async def _unload(self, known: Known, model: str, body: ollama_body.Body, path: str) -> Ticket:
        """keep_alive 0 without a prompt: Ollama answers at once and loads nothing, except for
        embeddings, whose routes load whatever they are asked for.
        """
        await self._mark(known, model)
        sent = ollama_body.clamped(body, self._clamp(known, model), v1=False, path=path)
        if path.startswith("/api/embed") and not await self._is_resident(known):
            field = "embedding" if path == "/api/embeddings" else "embeddings"
            return Ticket(sent, {"model": body.model, field: []})
        return Ticket(sent)

    def _fits_v1(self, known: Known, model: str) -> None:
        """Below /v1 a body takes no options: there a Modelfile's own num_ctx would size the runner.

        Raises:
            Refused: it asks for more than the configured context.

        """
        own, limit = known.about.modelfile_ctx, self._config["context_length"]
        if own > limit:
            msg = (
                f"{model}: its Modelfile asks for num_ctx {own}, context_length is {limit}, and "
                "routes below /v1 cannot change that: use /api/chat, or a Modelfile without it"
            )
            raise Refused(msg, status=400)

    async def _admit(self, known: Known, model: str, *, loads: bool) -> None:
        """Return when the model is resident; hold the load until it fits, within a bound. ``loads``:
        this request may load it; one that wants no model to stay may not.

        Raises:
            Refused: it is not resident and may not be loaded, or not within ``queue_timeout``.

        """
        run = self._run(known)
        task = self._under_way.get(run)
        if task is None and (self._requests[run] > 0 or await self._is_resident(known)):
            return
        if self._held >= self._config["max_queue"]:
            msg = f"{self._name}: {self._held} requests wait for a load already"
            raise Refused(msg)
        task = self._under_way.get(run)
        if task is None and not loads:
            text = (
                f"{model} is not resident, and a request with keep_alive 0 loads nothing: send it "
                "without keep_alive 0"
            )
            raise Refused(text, retry_after_s=10)
        if task is None:
            task = asyncio.create_task(self._load(known, model))
            self._under_way[run] = task
            task.add_done_callback(lambda done: self._loaded(run, done))
        self._held += 1
        try:
            await asyncio.shield(task)
        finally:
            self._held -= 1

    def _loaded(self, run: tuple[str, int], done: asyncio.Task[None]) -> None:
        self._under_way.pop(run, None)
        if not done.cancelled():
            done.exception()  # every waiter has had it, or nobody waits any more

    # -- what is resident ----------------------------------------------------------------------
    async def _is_resident(self, known: Known) -> bool:
        """Listed is resident, also past its time: that is renewed when its last request ends."""
        now = time.monotonic()
        age = now - self._looked_at
        listed = self._listed(known)
        if age <= RESIDENT_S and not self._under_way:  # a load may be evicting right now
            if listed is None:
                return False
            if listed.leaves_at - now > LEAVING_S:
                return True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._looking), _LOOK_S)
        if time.monotonic() - self._looked_at > STALE_S:
            return False
        return self._listed(known) is not None

    def _listed(self, known: Known) -> Resident | None:
        """The row of a runner that serves this model as it is, without starting anew."""
        for row in self._resident:
            there = row.known
            if there.runner != known.runner or there.about.rest != known.about.rest:
                continue
            gpu = known.about.num_gpu
            wanted = self._run(known)
            context = (wanted[1], self._contexts.get(wanted, 0), 0)
            if gpu in (-1, there.about.num_gpu) and row.context in context:
                return row
        return None

    async def _look(self) -> None:
        """Read /api/ps."""
        began = time.monotonic()
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            self._resident = await self._library.resident()
            self._looked_at = began

    # -- loading -------------------------------------------------------------------------------
    async def _load(self, known: Known, model: str) -> None:
        """Ask, wait, load, report."""
        shape, slots = known.shape, self._config["parallel"]
        run = self._run(known)
        lease = uuid.uuid4().hex[:12]
        ask = {
            "id": lease,
            "model": model,
            "predicted_bytes": from_ollama_api.predicted_bytes(
                shape, run[1], slots, self.device_bytes
            ),
            "shares": [r.known.name for r in self._resident if r.known.runner == known.runner],
            "resident": [[r.known.name, r.vram_bytes] for r in self._resident],
        }
        try:
            await self._arbiter.grant(ask, self._config["queue_timeout_s"])
        except asyncio.CancelledError:
            await self._arbiter.done(lease, "given up")
            raise
        detail = "the gate ended"
        try:
            detail = await self._do_load(known, model)
        finally:
            await self._arbiter.done(lease, detail)
        if detail:
            msg = f"{self._name} could not load {model}: {detail}"
            raise Refused(msg, status=503, retry_after_s=10)
        self._looked_at = -1e9
        await self._look()
        for row in self._resident:
            if row.known.runner == known.runner and row.context:
                self._contexts[run] = row.context

    async def _do_load(self, known: Known, model: str) -> str:
        """Load with exactly the clamped options; returns what went wrong."""
        keep = ollama_body.keep_alive(None, self._clamp(known, model), model)
        name = self._source(model) or model
        body = known.about.load_body(name, self._config["context_length"], keep)
        limit = self._config["load_timeout_s"]
        try:
            said = await self._library.post(known.about.load_path, body, limit)
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"[:300]
        return str(said.get("error", ""))[:300]

    async def _copy(self, source: str, alias: str) -> None:
        """Make Ollama answer to the substitute's name, too (idempotent; same blobs)."""
        copy = {"source": source, "destination": alias}
        said = await self._library.post("/api/copy", copy, 5.0)
        if "error" in said:
            msg = f"{self._name} has no {source!r} to stand in for {alias!r}: {said['error']}"
            raise Refused(msg, status=503, retry_after_s=60)
        self._copied.add(names.key(alias))
        self._library.forget()
