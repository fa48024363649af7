"""What the stand-in vLLM refuses of a request's body, in the words of 0.32 (recorded)."""

from __future__ import annotations

import json
from typing import Any

from arbiterd.sim.engines.vllm_answers import error

_FOUR = 4  # characters a token: the first, cheap check of a prompt's length


class Refused(Exception):
    """An answer in place of the one that was asked for: ``status`` and ``value``, its JSON."""

    def __init__(self, status: int, value: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.value = status, value


def _invalid(text: str, param: str | None) -> Refused:
    said = error(f"1 validation error:\n  {text}", "Bad Request", 400, param)
    return Refused(400, said)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def parse(kind: str, raw: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refused: it is none, or its Content-Type is another.
    """
    if kind.partition(";")[0].strip() != "application/json":
        raise _invalid("Unsupported Media Type: Only 'application/json' is allowed", None)
    try:
        found = json.loads(raw)
    except ValueError as bad:
        at = getattr(bad, "pos", 0)
        what = {
            "type": "json_invalid",
            "loc": f"body.{at}",
            "msg": "JSON decode error",
            "input": "<dict of 0 items>",
            "ctx": {"error": getattr(bad, "msg", str(bad))},
        }
        raise _invalid(str(what), f"body.{at}") from None
    if not isinstance(found, dict):
        what = {
            "type": "model_attributes_type",
            "loc": "body",
            "msg": "Input should be a valid dictionary or object to extract fields from",
            "input": _shown(found),
        }
        raise _invalid(str(what), "body")
    return found


def check(body: dict[str, Any], *, chat: bool) -> None:
    """Types, and what must be there.

    Raises:
        Refused: the first that is wrong.
    """
    if chat and "messages" not in body:
        what = {"type": "missing", "loc": "body.messages", "msg": "Field required"}
        raise _invalid(str({**what, "input": _shown(body)}), "body.messages")
    for name, kind, word in (
        ("temperature", float, "number"),
        ("top_p", float, "number"),
        ("max_tokens", int, "integer"),
        ("max_completion_tokens", int, "integer"),
        ("n", int, "integer"),
    ):
        value = body.get(name)
        try:
            kind(value if value is not None else 0)
        except (TypeError, ValueError):
            said = f"Input should be a valid {word}, unable to parse string as a{'n' * (kind is int)} {word}"
            what = {"type": f"{kind.__name__}_parsing", "loc": f"body.{name}", "msg": said}
            raise _invalid(str({**what, "input": _shown(value)}), f"body.{name}") from None
    if chat and not body["messages"]:
        said = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise Refused(400, error(said, "BadRequestError", 400))


def check_lengths(prompt: str, asked: int | None, most: int | None) -> None:
    """Prompt and max_tokens against --max-model-len.

    Raises:
        Refused: too long, or less than one token.
    """
    if asked is not None and asked < 1:
        _too(f"max_tokens must be at least 1, got {asked}.", "max_tokens", asked)
    if most is None:
        return
    if len(prompt) > most * _FOUR:
        said = (
            f"This model's maximum context length is {most} tokens. However, your prompt contains "
            f"{len(prompt)} characters (more than {most * _FOUR} characters, which is the upper "
            f"bound for {most} input tokens). Please reduce the length of the input prompt."
        )
        _too(said, "input_text", len(prompt))
    if asked is not None and asked > most:
        said = (
            f"max_tokens={asked} cannot be greater than max_model_len={most}. "
            "Please request fewer output tokens."
        )
        _too(said, "max_tokens", asked)


def _too(said: str, name: str, value: int) -> None:
    said = f"{said} (parameter={name}, value={value})"
    raise Refused(400, error(said, "BadRequestError", 400, name))


def prompt_of(body: dict[str, Any], *, chat: bool) -> str:
    """All text of the prompt."""
    if not chat:
        found = body.get("prompt", "")
        return found if isinstance(found, str) else " ".join(map(str, found))
    parts = []
    for one in body["messages"]:
        content = one.get("content") if isinstance(one, dict) else None
        if isinstance(content, list):
            parts += [str(part.get("text", "")) for part in content if isinstance(part, dict)]
        else:
            parts.append(str(content or ""))
    return "".join(parts)
