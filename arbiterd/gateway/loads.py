"""The load gate's bookkeeping of one Ollama: what is resident, which loads are asked for.

A load is done by the gate itself, once for all who wait for it: a client that gives up would make
Ollama abort it (docs/facts/engines.md), and a held load must use up no in-flight slot.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from contextlib import suppress
from datetime import datetime
from typing import Any

import aiohttp

from arbiterd.engines import ollama_names as names
from arbiterd.gateway import bodies, fit

RESIDENT_S = 1.0  # how long a list of resident models is believed
SLACK_S = 2.0  # one that expires so soon is no longer counted as resident
_ASK_S = 65.0
_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)", re.MULTILINE)


class Refused(Exception):
    """No, in one sentence."""

    def __init__(self, text: str, *, status: int = 503, retry_after_s: int = 5) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class Loads:
    """One Ollama behind the gate."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._config: dict[str, Any] = {}
        self._socket = ""
        self._resident: dict[str, float] = {}
        self._looked_at = -1e9
        self._looking: asyncio.Task[None] | None = None
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._shapes: dict[str, tuple[str, fit.Shape, list[str], int]] = {}
        self._held = 0
        self._copied: set[str] = set()
        self.device_bytes = 0  # what its devices hold, from the live map; 0 unknown

    def configure(self, config: dict[str, Any], socket: str) -> None:
        """Settings of now."""
        if config != self._config:
            self._shapes.clear()
            self._copied.clear()
        self._config, self._socket = config, socket

    # -- names ---------------------------------------------------------------------------------
    def own_name(self, model: str) -> str:
        """Ollama's own name of a model (an alias of failover goes to its source).

        Raises:
            Refused: not on the allow-list.

        """
        if not model:
            msg = "the body names no model"
            raise Refused(msg, status=400)
        for alias in self._config["aliases"]:
            if names.is_listed(model, (alias["name"], alias["source"])):
                return model
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

    def clamp(self) -> bodies.Clamp:
        """What every body gets."""
        models = self._config["models"]
        return bodies.Clamp(
            context_length=self._config["context_length"],
            keep_alive_s=self._config["keep_alive_s"],
            warm=models[0] if models else "",
        )

    def _source(self, model: str) -> str:
        aliases = self._config["aliases"]
        return next((a["source"] for a in aliases if names.same_model(a["name"], model)), "")

    # -- admission -----------------------------------------------------------------------------
    async def admit(self, model: str, *, v1: bool = False) -> None:
        """Return when the model is resident; hold the load until it fits, within a bound.

        Raises:
            Refused: it never fits, or not within ``queue_timeout``.

        """
        key = names.key(self._source(model) or model)
        source = self._source(model)
        if source and model not in self._copied:
            await self._copy(source, model)
        if v1:
            await self._fits_v1(source or model, key)
        if await self._is_resident(key):
            return
        if self._held >= self._config["max_queue"]:
            msg = f"{self._name}: {self._held} requests wait for a load already"
            raise Refused(msg)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._load(source or model, key))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._loaded(key, done))
        self._held += 1
        try:
            await asyncio.shield(task)
        finally:
            self._held -= 1

    def _loaded(self, key: str, done: asyncio.Task[None]) -> None:
        self._under_way.pop(key, None)
        if not done.cancelled():
            done.exception()  # every waiter has had it, or nobody waits any more

    async def _is_resident(self, key: str) -> bool:
        now = time.monotonic()
        if now - self._looked_at > RESIDENT_S:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            # /api/ps may block for seconds during an unload: then the old list holds a little longer
            if self._resident.get(key, 0) <= now or now - self._looked_at > 10:
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._looking), 6.0)
        return self._resident.get(key, 0) > time.monotonic()

    async def _look(self) -> None:
        """Read /api/ps."""
        began = time.monotonic()
        with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            found = await self._get("/api/ps", 6.0)
            now = time.monotonic()
            self._resident = {
                names.key(str(one["name"])): now + _left(str(one.get("expires_at", "")))
                for one in found.get("models") or []
            }
            self._looked_at = began

    async def _load(self, model: str, key: str) -> None:
        """Ask, wait, load, report."""
        deadline = time.monotonic() + self._config["queue_timeout_s"]
        try:
            predicted, route = await self._predict(model, key)
        except (aiohttp.ClientError, TimeoutError) as error:
            msg = f"{self._name} does not answer: {type(error).__name__}"
            raise Refused(msg) from None
        lease = uuid.uuid4().hex[:12]
        try:
            await self._ask(lease, model, predicted, deadline)
        except asyncio.CancelledError:
            await self._done(lease, "given up")
            raise
        detail = "the gate ended"
        try:
            detail = await self._do_load(model, route)
        finally:
            await self._done(lease, detail)
        if detail:
            msg = f"{self._name} could not load {model}: {detail}"
            raise Refused(msg, status=503, retry_after_s=10)
        self._looked_at = -1e9
        await self._look()

    async def _ask(self, lease: str, model: str, predicted: int, deadline: float) -> None:
        """Until granted. The daemon answers by long poll; away, it is asked again.

        Raises:
            Refused: no, or not in time.

        """
        why, retry = "the arbiter does not answer", 5
        ask = {"id": lease, "backend": self._name, "model": model, "predicted_bytes": predicted}
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                await self._done(lease, "not granted in time")
                held = self._config["queue_timeout_s"]
                text = f"{self._name}: loading {model} was held for {held:g} s: {why}"
                raise Refused(text, retry_after_s=retry)
            try:
                async with aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(self._socket)
                ) as session:
                    wait = aiohttp.ClientTimeout(total=min(left, _ASK_S) + 1.0)
                    async with session.post(
                        "http://arbiter/v1/loads", json={**ask, "wait_s": left}, timeout=wait
                    ) as reply:
                        said = await reply.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError):
                await asyncio.sleep(min(0.25, max(0.01, left)))
                continue
            verdict = said.get("verdict")
            if verdict == "grant":
                return
            why, retry = str(said.get("reason") or why), int(said.get("retry_after_s") or 5)
            if verdict == "refuse":
                raise Refused(why, retry_after_s=retry)

    async def _done(self, lease: str, detail: str) -> None:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._socket)
            ) as session:
                body = {"id": lease, "backend": self._name, "detail": detail}
                wait = aiohttp.ClientTimeout(total=2.0)
                async with session.post("http://arbiter/v1/loads/done", json=body, timeout=wait):
                    pass

    # -- Ollama --------------------------------------------------------------------------------
    async def _predict(self, model: str, key: str) -> tuple[int, str]:
        """Bytes it will take, and the route that loads it."""
        _, shape, capabilities, _ = await self._about(model, key)
        context, parallel = self._config["context_length"], self._config["parallel"]
        predicted = fit.predicted_bytes(shape, context, parallel, self.device_bytes)
        embeds = bool(capabilities) and "completion" not in capabilities
        return predicted, "/api/embed" if embeds else "/api/generate"

    async def _fits_v1(self, model: str, key: str) -> None:
        """Below /v1 a body takes no options: there a Modelfile's own num_ctx would size the runner.

        Raises:
            Refused: it asks for more than the configured context.

        """
        known = self._shapes.get(key)
        if known is None:
            with suppress(aiohttp.ClientError, TimeoutError):
                known = await self._about(model, key)
        limit = self._config["context_length"]
        if known is not None and known[3] > limit:
            msg = (
                f"{model}: its Modelfile asks for num_ctx {known[3]}, context_length is {limit}, and "
                "routes below /v1 cannot change that: use /api/chat, or a Modelfile without it"
            )
            raise Refused(msg, status=400)

    async def _about(self, model: str, key: str) -> tuple[str, fit.Shape, list[str], int]:
        """(digest, shape, capabilities, the Modelfile's num_ctx), asked once per digest."""
        tags = await self._get("/api/tags", 5.0)
        row = next((o for o in tags.get("models") or [] if names.key(str(o["name"])) == key), None)
        if row is None:
            msg = f"model {model!r} not found in {self._name}; ollama pull {model}"
            raise Refused(msg, status=404)
        digest = f"{row.get('digest', '')}{row.get('size', 0)}"
        known = self._shapes.get(key)
        if known is None or known[0] != digest:
            show = await self._post("/api/show", {"model": model}, 5.0)
            shape = fit.shape_of(int(row.get("size", 0)), show)
            found = _NUM_CTX.search(str(show.get("parameters") or ""))
            own = int(found[1]) if found else 0
            known = (digest, shape, list(show.get("capabilities") or ()), own)
            self._shapes[key] = known
        return known

    async def _do_load(self, model: str, route: str) -> str:
        """Load with exactly the clamped options; returns what went wrong."""
        clamp = self.clamp()
        keep = bodies.keep_alive(None, clamp, model)
        options = {"num_ctx": clamp.context_length, "num_gpu": clamp.num_gpu}
        body: dict[str, Any] = {
            "model": model,
            "keep_alive": keep,
            "options": options,
            "stream": False,
        }
        if route == "/api/embed":
            body["input"] = []
        try:
            said = await self._post(route, body, self._config["load_timeout_s"])
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"[:300]
        return str(said.get("error", ""))[:300]

    async def _copy(self, source: str, alias: str) -> None:
        """Make Ollama answer to the substitute's name, too (idempotent; same blobs)."""
        try:
            said = await self._post("/api/copy", {"source": source, "destination": alias}, 5.0)
        except (aiohttp.ClientError, TimeoutError) as error:
            msg = f"{self._name} does not answer: {type(error).__name__}"
            raise Refused(msg) from None
        if "error" in said:
            msg = f"{self._name} has no {source!r} to stand in for {alias!r}: {said['error']}"
            raise Refused(msg, status=503, retry_after_s=60)
        self._copied.add(alias)

    async def _get(self, path: str, timeout_s: float) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.get(self._config["engine"] + path) as reply,
        ):
            found = await reply.json(content_type=None)
            return found if isinstance(found, dict) else {}

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.post(self._config["engine"] + path, json=body) as reply,
        ):
            text = await reply.text()
            with suppress(ValueError):
                found = json.loads(text)
                if isinstance(found, dict):
                    return found
            return {} if reply.status == 200 else {"error": f"HTTP {reply.status}: {text[:200]}"}


def _left(expires_at: str) -> float:
    """Seconds that a resident model will stay for certain."""
    cut = re.sub(r"(\.\d{6})\d+", r"\1", expires_at)
    try:
        moment = datetime.fromisoformat(cut)
    except ValueError:
        return 3600.0
    if moment.year < 2000:  # Ollama's zero time: for ever
        return 3600.0
    return moment.timestamp() - time.time() - SLACK_S
