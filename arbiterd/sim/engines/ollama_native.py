"""The stand-in Ollama's own routes, /api/*."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from arbiterd.sim.engines.go_words import Refused, decode, keep_alive, stamp
from arbiterd.sim.engines.ollama_generate import (
    Ask,
    Counts,
    Part,
    check_abilities,
    model_for,
    parts,
    prompt_tokens,
    whole,
)
from arbiterd.sim.engines.ollama_models import Model
from arbiterd.sim.engines.ollama_options import runner_options, typed
from arbiterd.sim.engines.ollama_scheduler import Scheduler
from arbiterd.sim.engines.wire import Request

JSON = "application/json; charset=utf-8"
_OPTIONS = "map[string]interface {}"
_COMMON = {
    "model": "string",
    "stream": "bool",
    "format": "any",
    "keep_alive": "any",
    "options": _OPTIONS,
    "think": "any",
    "truncate": "bool",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
_GENERATE = _COMMON | {
    "prompt": "string",
    "suffix": "string",
    "system": "string",
    "template": "string",
    "context": "[]int",
    "raw": "bool",
    "images": "[]api.ImageData",
}
_CHAT = _COMMON | {"messages": "[]api.Message", "tools": "api.Tools"}
_EMBED = {
    "model": "string",
    "input": "any",
    "prompt": "string",
    "keep_alive": "any",
    "truncate": "bool",
    "dimensions": "int",
    "options": _OPTIONS,
}
_ABOUT = dict.fromkeys(("model", "name", "source", "destination", "from"), "string") | {
    "verbose": "bool",
    "stream": "bool",
    "parameters": "any",
    "files": "any",
}
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"


def packed(value: Any) -> bytes:
    """As Go writes JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class Native:
    """Handlers; each raises Refused for its errors."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.library = scheduler.library

    # -- lists ----------------------------------------------------------------------------------
    async def root(self, request: Request) -> None:
        await request.reply(200, b"Ollama is running", "text/plain; charset=utf-8")

    async def version(self, request: Request) -> None:
        forced = self.scheduler.faults.get("health_status")
        body = packed({"version": self.scheduler.version()})
        await request.reply(int(forced) if forced else 200, body, JSON)

    async def status(self, request: Request) -> None:
        await request.reply(200, packed({"cloud": {"disabled": True, "source": "env"}}), JSON)

    async def me(self, _: Request) -> None:
        raise Refused(503, "account unavailable")

    async def tags(self, request: Request) -> None:
        rows = [
            {
                "name": str(one.name),
                "model": str(one.name),
                "modified_at": stamp(one.modified),
                "size": one.blob.weights,
                "digest": one.digest,
                "details": one.details(listed=True),
                **({} if one.blob.missing else {"capabilities": one.kinds}),
            }
            for one in self.library
        ]
        await request.reply(200, packed({"models": rows}), JSON)

    async def ps(self, request: Request) -> None:
        """Blocks while a request finds out whether its runner still answers, as the real one."""
        rows = []
        for one in [*self.scheduler.loaded.values()]:
            async with one.asked:
                until = one.left_until
            about = {
                "name": str(one.model.name),
                "model": str(one.model.name),
                "size": one.size,
                "digest": one.model.digest,
                "details": one.model.details(listed=False),
                "expires_at": stamp(until),
                "size_vram": one.vram,
                "context_length": one.options.num_ctx,
            }
            rows.append((until, about))
        rows.sort(key=lambda row: -row[0])
        await request.reply(200, packed({"models": [about for _, about in rows]}), JSON)

    async def show(self, request: Request) -> None:
        body = await self._body(request, "ShowRequest", _ABOUT)
        model = self._named(body.get("model") or body.get("name") or "")
        if model.blob.broken:
            raise Refused(500, model.blob.broken)
        blob, lines = model.blob, model.parameter_lines()
        self.library.edited = str(self.scheduler.faults.get("parameters", ""))
        lines = self.library.edited or lines
        value = {
            "modelfile": model.modelfile(),
            **({"parameters": lines} if lines else {}),
            "template": blob.template,
            "details": model.details(listed=False),
            "model_info": blob.model_info(verbose=bool(body.get("verbose"))),
            "tensors": blob.tensors,
            "capabilities": model.kinds,
            "modified_at": stamp(model.modified),
        }
        await request.reply(200, packed(value), JSON)

    def _named(self, text: str) -> Model:
        """For routes that say the name with its tag."""
        if not text:
            raise Refused(400, "model is required")
        model = self.library.find(text)
        if model is None or model.blob.missing:
            tagged = text if ":" in text.rpartition("/")[2] else f"{text}:latest"
            raise Refused(404, f"model '{tagged}' not found")
        return model

    async def _body(self, request: Request, name: str, fields: Mapping[str, str]) -> dict[str, Any]:
        return decode(await request.read(), name, fields, empty="missing request body")

    # -- names ----------------------------------------------------------------------------------
    async def copy(self, request: Request) -> None:
        body = await self._body(request, "CopyRequest", _ABOUT)
        source = self.library.find(body.get("source", ""))
        if source is None:
            raise Refused(404, f'model "{body.get("source", "")}" not found')
        self.library.copy(source, body.get("destination", ""))
        await request.reply(200)

    async def delete(self, request: Request) -> None:
        body = await self._body(request, "DeleteRequest", _ABOUT)
        name = body.get("model") or body.get("name") or ""
        if not self.library.remove(name):
            raise Refused(404, f"model '{name}' not found")
        await request.reply(200)

    async def create(self, request: Request) -> None:
        """From another name, with parameters."""
        body = await self._body(request, "CreateRequest", _ABOUT)
        kind = "application/json"
        source = self.library.find(body.get("from", ""))
        if source is None:
            await self._lines(request, 400, {"error": "neither 'from' or 'files' was specified"})
            return
        self.library.copy(source, body.get("model", ""), body.get("parameters") or {})
        await request.reply(200, packed({"status": "success"}), kind)

    async def _lines(self, request: Request, status: int, value: Any) -> None:
        """A stream of one line, under a status."""
        await request.begin("application/json", status=status)
        await request.chunk(packed(value) + b"\n")
        await request.finish()

    async def blob_there(self, request: Request) -> None:
        known = {one.blob.digest for one in self.library}
        if request.path.rpartition("sha256:")[2] in known:
            await request.reply(200)
            return
        raise Refused(404, "blob not found")

    async def blob(self, request: Request) -> None:
        await request.read()
        digest = request.path.rpartition("sha256:")[2]
        got = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of "x"
        raise Refused(400, f'digest mismatch, expected "sha256-{digest}", got "sha256-{got}"')

    # -- tokens ---------------------------------------------------------------------------------
    async def generate(self, request: Request) -> None:
        body = await self._body(request, "GenerateRequest", _GENERATE)
        ask = _ask(body, body.get("prompt", ""), chat=False)
        await self._serve(request, ask, body, loads=not body.get("prompt"))

    async def chat(self, request: Request) -> None:
        body = await self._body(request, "ChatRequest", _CHAT)
        messages = body.get("messages") or []
        text = "\n".join(str(one.get("content", "")) for one in messages)
        ask = _ask(body, text or (" " if messages else ""), chat=True)
        await self._serve(request, ask, body, loads=not messages)

    async def _serve(
        self, request: Request, ask: Ask, body: dict[str, Any], *, loads: bool
    ) -> None:
        if ask.keep is not None and keep_alive(ask.keep) == 0 and loads:
            model = self.library.find(ask.model)
            if model is None:
                raise Refused(404, f"model '{ask.model}' not found")
            self.scheduler.unload(model)
            await request.reply(200, packed(_row(ask, Part(done="unload"))), JSON)
            return
        if ask.raw and (body.get("system") or body.get("template") or body.get("context")):
            raise Refused(400, "raw mode does not support template, system, or context")
        model = model_for(self.scheduler, ask)
        _check(ask, body, model)
        counts = Counts(time.time(), prompt_tokens(ask))
        if loads or body.get("stream", True) is False:
            part = await whole(self.scheduler, ask, model, counts)
            await request.reply(200, packed(_row(ask, part, counts)), JSON)
            return
        try:
            async for part in parts(self.scheduler, ask, model, counts):
                if not request.status:
                    await request.begin("application/x-ndjson")
                await request.chunk(packed(_row(ask, part, counts)) + b"\n")
        except Refused as error:
            if not request.status:
                raise
            await request.chunk(packed({"error": str(error)}) + b"\n")
        await request.finish()

    # -- vectors --------------------------------------------------------------------------------
    async def embed(self, request: Request) -> None:
        """``POST /api/embed``: one vector per text; 501 on a model that only chats."""
        body = await self._body(request, "EmbedRequest", _EMBED)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given or []
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise Refused(400, "invalid input type")
        began = time.time()
        texts = [one for one in texts if one]
        vectors = await self.vectors(body, texts)
        value: dict[str, Any] = {"model": body.get("model", ""), "embeddings": vectors}
        if texts:
            now = time.time()
            value |= {"total_duration": int((now - began) * 1e9), "load_duration": 1000}
            value["prompt_eval_count"] = sum(len(one.split()) + 1 for one in texts)
        await request.reply(200, packed(value), JSON)

    async def embeddings(self, request: Request) -> None:
        body = await self._body(request, "EmbeddingRequest", _EMBED)
        prompt = body.get("prompt", "")
        try:
            found = await self.vectors(body, [prompt] if prompt else [])
        except Refused as error:
            raise Refused(500 if error.status == 501 else error.status, str(error)) from None
        await request.reply(200, packed({"embedding": found[0] if found else []}), JSON)

    async def vectors(self, body: Mapping[str, Any], texts: list[str]) -> list[list[float]]:
        """One per text; loads like any other request.

        Raises:
            Refused: unknown model, one that does not embed, a text that is too long.
        """
        name = str(body.get("model", ""))
        keep = body.get("keep_alive")
        keep_s = None if keep is None else keep_alive(keep)
        self.library.edited = str(self.scheduler.faults.get("parameters", ""))
        model = self.library.find(name)
        if model is None:
            raise Refused(404, f'model "{name}" not found, try pulling it first')
        found = typed({**self.library.parameters(model), **(body.get("options") or {})})
        options = runner_options(found, model.blob, self.scheduler.default_context, shift=True)
        async with self.scheduler.using(model, options, keep_s):
            if not texts:
                return []
            if not model.blob.embedding:
                raise Refused(501, NO_EMBEDDINGS)
            longest = max(len(one.split()) for one in texts)
            if body.get("truncate") is False and longest > options.num_ctx:
                raise Refused(400, "the input length exceeds the context length")
            width = body.get("dimensions") or model.blob.embedding
            return [[0.125] * width for _ in texts]


def _ask(body: Mapping[str, Any], prompt: str, *, chat: bool) -> Ask:
    if body.get("keep_alive") is not None:
        keep_alive(body["keep_alive"])  # a bad one is an error of the body, before anything else
    return Ask(
        model=body.get("model", ""),
        prompt=prompt,
        chat=chat,
        options=body.get("options") or {},
        keep=body.get("keep_alive"),
        shift=body.get("shift"),
        truncate=body.get("truncate", True),
        raw=body.get("raw", False),
        logprobs=body.get("logprobs", False),
    )


def _check(ask: Ask, body: Mapping[str, Any], model: Model) -> None:
    """What these models cannot do."""
    check_abilities(body, model)
    if body.get("think"):
        raise Refused(400, f'"{ask.model}" does not support thinking')
    if body.get("images"):
        text = "Multimodal data provided, but model does not support multimodal requests."
        error = {"code": 400, "message": text, "type": "invalid_request_error"}
        raise Refused(400, packed({"error": error}).decode())
    shape = body.get("format")
    if isinstance(shape, str) and shape not in {"", "json"}:
        shown = json.dumps(json.dumps(shape))
        raise Refused(
            500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object'
        )


def _row(ask: Ask, part: Part, counts: Counts | None = None) -> dict[str, Any]:
    content: dict[str, Any] = (
        {"message": {"role": "assistant", "content": part.text}}
        if ask.chat
        else {"response": part.text}
    )
    row = {"model": ask.model, "created_at": stamp(time.time()), **content, "done": bool(part.done)}
    if part.logprobs:
        row["logprobs"] = part.logprobs
    if not part.done:
        return row
    row["done_reason"] = part.done
    if counts is None or part.done == "load":
        return row
    if not ask.chat and not ask.raw:
        row["context"] = list(range(1, counts.prompt + counts.tokens + 1))
    now = time.time()
    return row | {
        "total_duration": int((now - counts.began) * 1e9),
        "load_duration": int((counts.loaded - counts.began) * 1e9),
        "prompt_eval_count": counts.prompt,
        "prompt_eval_duration": 1_000_000,
        "eval_count": max(1, counts.tokens),
        "eval_duration": int((now - counts.loaded) * 1e9),
    }
