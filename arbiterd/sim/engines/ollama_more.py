"""The stand-in Ollama's other compatibility routes: OpenAI's /v1/responses, Anthropic's /v1/messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

from arbiterd.sim.engines.go_words import Refused
from arbiterd.sim.engines.ollama_generate import (
    Ask,
    Counts,
    check_abilities,
    model_for,
    parts,
    prompt_tokens,
    whole,
)
from arbiterd.sim.engines.ollama_native import packed
from arbiterd.sim.engines.ollama_scheduler import Scheduler
from arbiterd.sim.engines.ollama_v1 import JSON, Early, early, need_model, options, text_of
from arbiterd.sim.engines.wire import Request

_EVENTS = {"Cache-Control": "no-cache", "Connection": "keep-alive"}
_RESPONSES = {
    "model": "string",
    "input": "any",
    "stream": "bool",
    "max_output_tokens": "int",
    "temperature": "float64",
    "top_p": "float64",
    "instructions": "string",
    "tools": "any",
}
_MESSAGES = {
    "model": "string",
    "max_tokens": "int",
    "messages": "[]anthropic.MessageParam",
    "stream": "bool",
    "temperature": "float64",
    "system": "any",
    "tools": "any",
}
_STOPS = {"length": "max_tokens", "stop": "end_turn"}
_TYPES = {400: "invalid_request_error", 404: "not_found_error", 503: "overloaded_error"}
_numbers = itertools.count(1)


def anthropic_error(error: Refused) -> dict[str, Any]:
    """Anthropic's shape."""
    kind = _TYPES.get(error.status, "api_error")
    about = {"type": kind, "message": str(error)}
    return {"type": "error", "error": about, "request_id": f"req_{next(_numbers)}"}


class More:
    """Handlers; each raises Refused for its errors."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    # -- Anthropic ------------------------------------------------------------------------------
    async def messages(self, request: Request) -> None:
        """``POST /v1/messages``: Anthropic's form."""
        body = early(await request.read(), "MessagesRequest", _MESSAGES)
        if not body.get("model"):
            raise Early(400, "model is required")
        if int(body.get("max_tokens") or 0) <= 0:
            raise Early(400, "max_tokens is required and must be positive")
        if not body.get("messages"):
            raise Early(400, "messages is required")
        ask = Ask(body["model"], text_of(body["messages"]), chat=True, options=options(body))
        model = model_for(self.scheduler, ask)
        check_abilities(body, model)
        counts = Counts(time.time(), prompt_tokens(ask))
        head: dict[str, Any] = {
            "id": f"msg_{next(_numbers)}",
            "type": "message",
            "role": "assistant",
            "model": ask.model,
        }
        if body.get("stream"):
            await self._messages(request, ask, head, counts)
            return
        part = await whole(self.scheduler, ask, model, counts)
        content = [{"type": "text", "text": part.text}]
        reason = {"stop_reason": _STOPS.get(part.done, part.done)}
        value = {**head, "content": content, **reason, "usage": _tokens(counts)}
        await request.reply(200, packed(value), JSON)

    async def _messages(
        self, request: Request, ask: Ask, head: dict[str, Any], counts: Counts
    ) -> None:
        """A runner that dies leaves it without its last events."""
        send, done = _Sender(request), ""
        try:
            async for part in parts(self.scheduler, ask, model_for(self.scheduler, ask), counts):
                if not request.status:
                    await request.begin("text/event-stream", headers=_EVENTS)
                    whole_head = {**head, "content": [], "usage": _tokens(counts)}
                    await send("message_start", message=whole_head)
                    block = {"type": "text", "text": ""}
                    await send("content_block_start", index=0, content_block=block)
                done = part.done
                if not done:
                    delta = {"type": "text_delta", "text": part.text}
                    await send("content_block_delta", index=0, delta=delta)
        except Refused:
            if not request.status:
                raise
        if done:
            await send("content_block_stop", index=0)
            reason = {"stop_reason": _STOPS.get(done, done)}
            await send("message_delta", delta=reason, usage=_tokens(counts))
            await send("message_stop")
        await request.finish()

    # -- OpenAI's responses ---------------------------------------------------------------------
    async def responses(self, request: Request) -> None:
        """``POST /v1/responses``: text or a list of messages as input."""
        body = early(await request.read(), "ResponsesRequest", _RESPONSES)
        given = body.get("input") or ""
        prompt = given if isinstance(given, str) else text_of(given)
        wanted = options(body, body.get("max_output_tokens"))
        ask = Ask(need_model(body), prompt, chat=True, options=wanted)
        model = model_for(self.scheduler, ask)
        counts = Counts(time.time(), prompt_tokens(ask))
        number = next(_numbers)
        if body.get("stream"):
            await self._responses(request, ask, body, counts, number)
            return
        part = await whole(self.scheduler, ask, model, counts)
        value = _response(body, number, "completed", output=[_said(number, part.text)])
        value |= {"usage": _response_usage(counts), "completed_at": int(time.time())}
        await request.reply(200, packed(value), JSON)

    async def _responses(
        self, request: Request, ask: Ask, body: Mapping[str, Any], counts: Counts, number: int
    ) -> None:
        """A runner that dies leaves it without its last events."""
        send, text, done = _Sender(request, numbered=True), "", ""
        at = {"item_id": f"msg_{number}", "output_index": 0, "content_index": 0}
        going = _response(body, number, "in_progress")
        try:
            async for part in parts(self.scheduler, ask, model_for(self.scheduler, ask), counts):
                if not request.status:
                    await request.begin("text/event-stream", headers=_EVENTS)
                    await send("response.created", response=going)
                    await send("response.in_progress", response=going)
                    empty = {**_said(number, ""), "content": [], "status": "in_progress"}
                    await send("response.output_item.added", item=empty, output_index=0)
                    await send("response.content_part.added", **at, part=_text(""))
                done = part.done
                if not done:
                    text += part.text
                    delta = {"delta": part.text, "logprobs": []}
                    await send("response.output_text.delta", **at, **delta)
        except Refused:
            if not request.status:
                raise
        if done:
            await send("response.output_text.done", **at, text=text, logprobs=[])
            await send("response.content_part.done", **at, part=_text(text))
            item = _said(number, text)
            await send("response.output_item.done", item=item, output_index=0)
            ended = _response(body, number, "completed", output=[item])
            ended |= {"usage": _response_usage(counts), "completed_at": int(time.time())}
            await send("response.completed", response=ended)
        await request.finish()


class _Sender:
    def __init__(self, request: Request, *, numbered: bool = False) -> None:
        self._request, self._numbered, self._next = request, numbered, 0

    async def __call__(self, event: str, **data: Any) -> None:
        value = {"type": event, **data}
        if self._numbered:
            value["sequence_number"] = self._next
            self._next += 1
        await self._request.chunk(f"event: {event}\ndata: ".encode() + packed(value) + b"\n\n")


def _tokens(counts: Counts) -> dict[str, int]:
    return {"input_tokens": counts.prompt, "output_tokens": counts.tokens}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _said(number: int, text: str) -> dict[str, Any]:
    about = {"id": f"msg_{number}", "type": "message", "status": "completed"}
    return {**about, "role": "assistant", "content": [_text(text)]}


def _response(body: Mapping[str, Any], number: int, status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": status,
        "incomplete_details": None,
        "model": body["model"],
        "previous_response_id": None,
        "instructions": body.get("instructions"),
        "output": [],
        "error": None,
        "tools": [],
        "tool_choice": "auto",
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
        "top_p": body.get("top_p", 1),
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "temperature": body.get("temperature", 1),
        "reasoning": None,
        "usage": None,
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
        **more,
    }


def _response_usage(counts: Counts) -> dict[str, Any]:
    return {
        **_tokens(counts),
        "total_tokens": counts.prompt + counts.tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
