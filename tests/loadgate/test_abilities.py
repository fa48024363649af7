"""What a request asks of a model, read without building the body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from arbiterd.loadgate.abilities import missing
from arbiterd.loadgate.ollama_body import parse

CHAT = ("completion",)
TOOL = [{"type": "function", "function": {"name": "f"}}]
USER = {"role": "user", "content": "x"}


def lacks(path: str, can: tuple[str, ...], **body: Any) -> str:
    """Of a body with this text."""
    return missing(parse(json.dumps({"model": "m", **body}).encode()), path, can)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/api/chat", {"messages": [USER], "tools": TOOL}, "tools"),
        ("/api/chat", {"messages": [USER], "Tools": TOOL}, "tools"),
        ("/v1/messages", {"messages": [USER], "tools": TOOL}, "tools"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "insert"),
        ("/api/chat", {"messages": [USER], "think": "high"}, "thinking"),
        ("/api/chat", {"messages": [USER, {**USER, "Images": ["AA=="]}]}, "vision"),
        ("/api/generate", {"prompt": "x", "images": ["A" * 9000]}, "vision"),
        ("/v1/messages", {"messages": [{**USER, "content": [{"type": "image", "source": {}}]}]}, "vision"),
        ("/v1/chat/completions", {"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "vision"),
    ],
)  # fmt: skip
def test_what_is_asked_is_found(path: str, body: dict[str, Any], word: str) -> None:
    """Whatever route and spelling; a model that can do it, or does not tell, lacks nothing."""
    assert lacks(path, CHAT, **body) == word
    assert lacks(path, (*CHAT, word), **body) == ""
    assert lacks(path, (), **body) == ""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": [USER], "tools": [], "think": False}),
        ("/api/chat", {"messages": [{**USER, "images": []}]}),
        ("/api/chat", {"messages": [{**USER, "content": '"images": ["AA=="]'}]}),
        ("/api/chat", {"messages": [{**USER, "tool_calls": [{"function": {"arguments": {"images": ["a"]}}}]}]}),
        ("/v1/chat/completions", {"messages": [{**USER, "content": "an image_url"}]}),
        ("/api/generate", {"prompt": "tools", "suffix": "", "images": []}),
        ("/api/embed", {"input": "x", "tools": TOOL}),
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_not(path: str, body: dict[str, Any]) -> None:
    """Empty lists, words within text, arguments of a tool."""
    assert lacks(path, CHAT, **body) == ""
