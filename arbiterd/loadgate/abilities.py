"""What a request asks of a model that not every model can do: tools, images, insertion, thinking. Pure.

Ollama refuses tools, insertion and thinking before it loads a model that lacks them (CheckCapabilities in
server/routes.go scheduleRunner), images only once the model is loaded; so the gate asks for no load in
either case. /api/show tells what a model can do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from arbiterd.loadgate.ollama_body import Body, Part, member

# As recorded from Ollama 0.33: the runner's words within Ollama's.
NO_IMAGES = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "Multimodal data provided, but model does not support multimodal requests.",
            "type": "invalid_request_error",
        }
    },
    separators=(",", ":"),
)
_TOOLS = ("/api/chat", "/v1/chat/completions", "/v1/messages")
_SUFFIX = ("/api/generate", "/v1/completions")
_THINK = ("/api/chat", "/api/generate")
_IMAGE = re.compile(rb'"(?i:images)"\s*:\s*\[\s*"|"(?:image_url|image)"')
_LOOK_BYTES = 4 * 1024 * 1024  # longer messages that look like it are taken to have images


def missing(body: Body, path: str, can: Collection[str]) -> str:
    """The first ability that the request needs and the model lacks: a word of /api/show's capabilities,
    "" when it lacks none or does not tell what it can do.
    """
    if not can:
        return ""
    wanted = {
        "tools": path in _TOOLS and bool(member(body, "tools")),
        "insert": path in _SUFFIX and bool(member(body, "suffix")),
        "thinking": path in _THINK and member(body, "think") in (True, "high", "medium", "low"),
        "vision": _images(body, path),
    }
    return next((word for word, asked in wanted.items() if asked and word not in can), "")


def _images(body: Body, path: str) -> bool:
    if path == "/api/generate":
        return bool(member(body, "images"))
    found = member(body, "messages")
    if not isinstance(found, Part):
        return False
    raw = memoryview(found.source.raw)[found.start : found.end]
    if not _IMAGE.search(raw):
        return False
    if len(raw) > _LOOK_BYTES:
        return True
    try:
        return any(_has_image(one) for one in json.loads(bytes(raw)))
    except (ValueError, TypeError, RecursionError):
        return False


def _has_image(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    parts = message.get("content")
    kinds = (
        [one.get("type") for one in parts if isinstance(one, dict)]
        if isinstance(parts, list)
        else []
    )
    own = any(value for key, value in message.items() if key.lower() == "images")
    return own or "image_url" in kinds or "image" in kinds
