"""What the stand-in vLLM's answers look like: the shapes of 0.32, field by field, as recorded."""

from __future__ import annotations

import itertools
import time
from typing import Any

FINGERPRINT = "vllm-0.32.0-51a11d11"
BUSY = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a "
    "different instance."
)
SHUT_DOWN = "cannot schedule new futures after shutdown"
_numbers = itertools.count(1)


def error(message: str, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    """In OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    """One row of /v1/models."""
    now = int(time.time())
    permission = {
        "id": f"modelperm-{next(_numbers):016x}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [permission],
    }


def usage(prompt: int, made: int) -> dict[str, Any]:
    """Tokens of one answer."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}


class Shape:
    """One answer in the making: of a chat or of a completion, by one model."""

    def __init__(self, model: str, *, chat: bool) -> None:
        self.chat, self.model = chat, model
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{next(_numbers):016x}"
        self._created = int(time.time())

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model}

    def whole(self, text: str, finish: str, prompt: int, made: int) -> dict[str, Any]:
        """The whole answer."""
        choice: dict[str, Any] = {"index": 0}
        after: dict[str, Any] = {"prompt_logprobs": None, "prompt_token_ids": None}
        if self.chat:
            message = {"role": "assistant", "content": text, "refusal": None, "annotations": None}
            message |= {"audio": None, "function_call": None, "reasoning": None}
            choice |= {"message": message, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None, "token_ids": None, "routed_experts": None}
            tail = {**after, "prompt_text": None}
        else:
            choice |= {"text": text, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None, "token_ids": None, **after, "routed_experts": None}
            tail = {}
        details = {"prompt_tokens_details": None, "completion_tokens_details": None}
        return {
            **self._head("chat.completion" if self.chat else "text_completion"),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(prompt, made), **details},
            **tail,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _part(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, **more}

    def first(self) -> dict[str, Any]:
        """A chat's first event: the role."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._part([choice], prompt_token_ids=None, prompt_text=None)

    def token(self, text: str, finish: str | None = None, *, last: bool = False) -> dict[str, Any]:
        """An event with text; ``last``: no event with the usage follows, so it has the fingerprint."""
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            choice |= {"delta": {"content": text}, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None} if finish else {}
            choice |= {"token_ids": None}
        else:
            choice |= {"text": text, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None, "prompt_token_ids": None, "token_ids": None}
        more = {"system_fingerprint": FINGERPRINT} if finish and last else {}
        return self._part([choice], **more)

    def used(self, prompt: int, made: int) -> dict[str, Any]:
        """The event with the usage (``stream_options.include_usage``)."""
        return self._part([], usage=usage(prompt, made), system_fingerprint=FINGERPRINT)


def response(model: str, text: str, prompt: int, made: int, most: int | None) -> dict[str, Any]:
    """Of /v1/responses."""
    cut = most is not None and made >= most
    content: list[dict[str, Any]] = [
        {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    ]
    message = {
        "id": f"msg_{next(_numbers):x}",
        "content": content if text else [],
        "role": "assistant",
        "status": "completed",
        "type": "message",
        "phase": None,
    }
    inside = {"cached_tokens": 0, "cache_write_tokens": 0}
    inside_turns: dict[str, list[int]] = {"input_tokens_per_turn": [], "cached_tokens_per_turn": []}
    outside = {"reasoning_tokens": 0, "tool_output_tokens": 0}
    outside_turns: dict[str, list[int]] = {
        "output_tokens_per_turn": [],
        "tool_output_tokens_per_turn": [],
    }
    nothing: tuple[str, ...] = (
        "instructions",
        "metadata",
        "max_tool_calls",
        "previous_response_id",
        "prompt",
    )
    nothing += ("reasoning", "text", "top_logprobs", "user", "kv_transfer_params")
    nothing += ("ec_transfer_params", "input_messages", "output_messages")
    return {
        **dict.fromkeys(nothing),
        "id": f"resp_{next(_numbers):x}",
        "created_at": int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": model,
        "object": "response",
        "output": [message],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "none",
        "tools": [],
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": most,
        "service_tier": "auto",
        "status": "incomplete" if cut else "completed",
        "truncation": "disabled",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {**inside, **inside_turns},
            "output_tokens": made,
            "output_tokens_details": {**outside, **outside_turns},
            "total_tokens": prompt + made,
        },
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def message(model: str, text: str, prompt: int, made: int) -> dict[str, Any]:
    """Of Anthropic's /v1/messages."""
    return {
        "id": f"chatcmpl-{next(_numbers):016x}",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": text}],
        "model": model,
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": prompt, "output_tokens": made},
    }
