"""The stand-in Ollama's compatibility routes: OpenAI's chat, completions, embeddings, models."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from arbiterd.sim.engines.go_words import Refused, decode
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
from arbiterd.sim.engines.ollama_native import Native, packed
from arbiterd.sim.engines.wire import Request

JSON = "application/json"
_EVENTS = "text/event-stream"
_EARLY = "application/json; charset=utf-8"  # of errors before the handler
_COMMON = {
    "model": "string",
    "stream": "bool",
    "max_tokens": "int",
    "temperature": "float64",
    "top_p": "float64",
    "seed": "int",
    "stop": "any",
    "stream_options": "map[string]interface {}",
    "frequency_penalty": "float64",
    "presence_penalty": "float64",
}
_CHAT = _COMMON | {
    "messages": "[]openai.Message",
    "max_completion_tokens": "int",
    "response_format": "map[string]interface {}",
    "tools": "[]api.Tool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
_COMPLETION = _COMMON | {"prompt": "string", "suffix": "string", "logprobs": "any"}
_EMBED = {
    "model": "string",
    "input": "any",
    "encoding_format": "string",
    "dimensions": "int",
}
_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


class Early(Refused):
    """An error that the real one finds before its handler runs."""


def error_body(error: Refused) -> dict[str, Any]:
    """OpenAI's shape."""
    kind = _TYPES.get(error.status, "api_error")
    return {"error": {"message": str(error), "type": kind, "param": None, "code": None}}


def early(raw: bytes, name: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """A body, its errors as those before the handler.

    Raises:
        Early: it cannot be read.
    """
    try:
        return decode(raw, name, fields, empty="EOF")
    except Refused as error:
        raise Early(error.status, str(error)) from None


def text_of(messages: list[Mapping[str, Any]]) -> str:
    """What the messages say, content as a text or as parts."""
    found = []
    for one in messages:
        content = {key.casefold(): value for key, value in one.items()}.get("content") or ""
        pieces = content if isinstance(content, list) else [{"text": content}]
        found += [str(piece.get("text", "")) for piece in pieces if isinstance(piece, dict)]
    return "\n".join(found) or " "


def options(body: Mapping[str, Any], most: Any = None) -> dict[str, Any]:
    """Native options of a /v1 body; an ``options`` object in it is not heard."""
    made: dict[str, Any] = {"temperature": body.get("temperature", 1.0)}
    limit = most if most is not None else body.get("max_tokens")
    if limit is not None:
        made["num_predict"] = limit
    stop = body.get("stop")
    if stop is not None:
        made["stop"] = [stop] if isinstance(stop, str) else stop
    return made


def need_model(body: Mapping[str, Any]) -> str:
    """The name.

    Raises:
        Refused: 400, there is none.
    """
    if not body.get("model"):
        raise Refused(400, "model is required")
    return str(body["model"])


class OpenAi:
    """Handlers; each raises Refused for its errors."""

    def __init__(self, native: Native) -> None:
        self.native, self.scheduler = native, native.scheduler
        self._count = 0

    def _row(self, name: Any) -> dict[str, Any]:
        model = self.native._named(str(name))  # noqa: SLF001 - one engine in several files
        row = {"id": str(name), "object": "model", "created": int(model.modified)}
        return {**row, "owned_by": model.name.space}

    async def models(self, request: Request) -> None:
        rows = [self._row(one.name) for one in self.native.library]
        await request.reply(200, packed({"object": "list", "data": rows}), JSON)

    async def model(self, request: Request) -> None:
        row = self._row(request.path.removeprefix("/v1/models/"))
        await request.reply(200, packed(row), JSON)

    async def transcriptions(self, request: Request) -> None:
        await request.read()
        text = "failed to parse multipart form: request Content-Type isn't multipart/form-data"
        raise Early(400, text)

    async def embeddings(self, request: Request) -> None:
        """``POST /v1/embeddings``: OpenAI's form, vectors as numbers or base64."""
        body = early(await request.read(), "EmbedRequest", _EMBED)
        given, form = body.get("input"), body.get("encoding_format", "float")
        if given is None or given == []:
            raise Early(400, "invalid input")
        if form not in {"float", "base64"}:
            words = f"Invalid value for 'encoding_format' = {form}. Supported values: ['float', 'base64']."
            raise Early(400, words)
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise Refused(400, "invalid input type")
        vectors = await self.native.vectors(body, texts)
        rows = [
            {"object": "embedding", "embedding": _coded(one, form), "index": number}
            for number, one in enumerate(vectors)
        ]
        count = sum(len(one.split()) + 1 for one in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        value = {"object": "list", "data": rows, "model": body["model"], "usage": usage}
        await request.reply(200, packed(value), JSON)

    # -- tokens ---------------------------------------------------------------------------------
    async def chat(self, request: Request) -> None:
        body = early(await request.read(), "ChatCompletionRequest", _CHAT)
        if not body.get("messages"):
            raise Early(400, "[] is too short - 'messages'")
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        ask = Ask(
            model=need_model(body),
            prompt=text_of(body["messages"]),
            chat=True,
            options=options(body, most),
            logprobs=body.get("logprobs", False),
        )
        await self._serve(request, ask, body)

    async def completions(self, request: Request) -> None:
        body = early(await request.read(), "CompletionRequest", _COMPLETION)
        prompt = body.get("prompt", "")
        ask = Ask(model=need_model(body), prompt=prompt, chat=False, options=options(body))
        await self._serve(request, ask, body)

    def _head(self, ask: Ask, *, stream: bool) -> dict[str, Any]:
        self._count += 1
        kind = "chat.completion" if ask.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-{self._count}",
            "object": f"{kind}.chunk" if stream and ask.chat else kind,
            "created": int(time.time()),
            "model": ask.model,
            "system_fingerprint": "fp_ollama",
        }

    async def _serve(self, request: Request, ask: Ask, body: Mapping[str, Any]) -> None:
        model = model_for(self.scheduler, ask)
        check_abilities(body, model)
        counts = Counts(time.time(), prompt_tokens(ask))
        stream = bool(body.get("stream"))
        head = self._head(ask, stream=stream)
        if stream:
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            found = parts(self.scheduler, ask, model, counts)
            await self._stream(request, ask, head, found, counts, usage=usage)
            return
        part = await whole(self.scheduler, ask, model, counts)
        choice: dict[str, Any] = {"index": 0, "finish_reason": part.done or None}
        if ask.chat:
            choice["message"] = {"role": "assistant", "content": part.text}
            if part.logprobs:
                choice["logprobs"] = {"content": part.logprobs}
        else:
            choice["text"] = part.text
        value = {**head, "choices": [choice], "usage": _usage(counts)}
        await request.reply(200, packed(value), JSON)

    async def _stream(
        self,
        request: Request,
        ask: Ask,
        head: dict[str, Any],
        found: AsyncIterator[Part],
        counts: Counts,
        *,
        usage: bool,
    ) -> None:
        """Events. One that loses its runner ends with an empty piece of no model, and no [DONE]."""
        first, ended = True, False

        async def send(**more: Any) -> None:
            if usage and not ask.chat:
                more["usage"] = _usage(counts)
            await request.chunk(b"data: " + packed({**head, **more}) + b"\n\n")

        try:
            async for part in found:
                if not request.status:
                    await request.begin(_EVENTS)
                ended = bool(part.done)
                await send(choices=[_piece(ask, part, first=first)])
                first = False
        except Refused:
            if not request.status:
                raise
            head["model"] = ""
            await send(choices=[_piece(ask, Part(), first=False)])
        if ended and usage:
            await send(choices=[], usage=_usage(counts))
        if ended:
            await request.chunk(b"data: [DONE]\n\n")
        await request.finish()


def _piece(ask: Ask, part: Part, *, first: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": part.done or None}
    if not ask.chat:
        return {"text": part.text, **choice}
    delta = {"role": "assistant"} if first and not part.done else {}
    if not part.done:
        delta["content"] = part.text
    return {**choice, "delta": delta}


def _usage(counts: Counts) -> dict[str, int]:
    both = {"prompt_tokens": counts.prompt, "completion_tokens": counts.tokens}
    return {**both, "total_tokens": counts.prompt + counts.tokens}


def _coded(vector: list[float], form: str) -> Any:
    if form == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector
