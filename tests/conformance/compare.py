"""Compare what was seen with what a case expects; masks stand for what differs from run to run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from tests.conformance.wire import Answer

MORE = "... more of the same shape"
ANY_ORDER = "... in any order"
# Within a string; a mask that is the whole string also stands for a value of another type, below.
_MASKS = {
    "text": r"(?s:.+)",
    "time": r".+?",
    "epoch": r"\d+",
    "count": r"\d+",
    "bytes": r"\d+",
    "ns": r"\d+",
    "n": r"\w+",
    "sha256": r"[0-9a-f]{64}",
    "hex": r"[0-9a-f]+",
    "base64": r"[A-Za-z0-9+/]+=*",
    "port": r"\d+",
    "dir": r"[^\s\"]+?",
    "version": r"\d[\w.+-]*",
    "took": r" *[\d.]+(?:ms|µs|ns|s|m[\d.]+s)",
    "client": r" *[\da-f.:]+",
    "source": r"\S+",
    "number": r"-?[\d.]+",
    "anything": r"(?s:.*)",
}
_MASK = re.compile(r"<(" + "|".join(_MASKS) + r")>")
_NUMBERS = {"<epoch>", "<count>", "<bytes>", "<ns>"}
_LISTS = re.compile(r"<(vector|list) of (\d+)>")


@lru_cache(maxsize=4096)
def _pattern(expected: str) -> re.Pattern[str] | None:
    if not _MASK.search(expected):
        return None
    parts = _MASK.split(expected)
    made = [
        re.escape(part) if number % 2 == 0 else _MASKS[part] for number, part in enumerate(parts)
    ]
    return re.compile("".join(made))


def differences(expected: Any, seen: Any, where: str = "") -> Iterator[str]:
    """Every difference, as a line of text; nothing when they agree."""
    if isinstance(expected, str):
        if not _string(expected, seen):
            yield f"{where or 'value'}: expected {expected!r}, seen {_short(seen)}"
    elif isinstance(expected, Mapping):
        yield from _mapping(expected, seen, where)
    elif isinstance(expected, list):
        yield from _sequence(expected, seen, where)
    elif isinstance(expected, bool) is not isinstance(seen, bool) or expected != seen:
        yield f"{where or 'value'}: expected {expected!r}, seen {_short(seen)}"


def _string(expected: str, seen: Any) -> bool:
    if expected in (seen, "<anything>"):
        return True
    if expected in _NUMBERS:
        return type(seen) is int and seen >= 0
    if expected in {"<n>", "<number>"} and type(seen) in {int, float}:
        return True
    if expected == "<ints>":
        return isinstance(seen, list) and bool(seen) and all(type(one) is int for one in seen)
    if found := _LISTS.fullmatch(expected):
        numbers = found[1] == "list" or all(isinstance(one, int | float) for one in seen)
        return isinstance(seen, list) and len(seen) == int(found[2]) and numbers
    pattern = _pattern(expected)
    return pattern is not None and isinstance(seen, str) and bool(pattern.fullmatch(seen))


def _mapping(expected: Mapping[str, Any], seen: Any, where: str) -> Iterator[str]:
    if not isinstance(seen, Mapping):
        yield f"{where or 'value'}: expected {_short(expected)}, seen {_short(seen)}"
        return
    for name in expected.keys() - seen.keys():
        yield f"{where}.{name}: missing, expected {_short(expected[name])}"
    for name in seen.keys() - expected.keys():
        yield f"{where}.{name}: not expected, seen {_short(seen[name])}"
    for name in expected.keys() & seen.keys():
        yield from differences(expected[name], seen[name], f"{where}.{name}")


def _sequence(expected: list[Any], seen: Any, where: str) -> Iterator[str]:
    if not isinstance(seen, list):
        yield f"{where or 'value'}: expected {_short(expected)}, seen {_short(seen)}"
        return
    if expected[:1] == [ANY_ORDER]:
        yield from _any_order(expected[1:], list(seen), where)
        return
    at = 0
    for number, part in enumerate(expected):
        if part == MORE:
            before, after = expected[number - 1], expected[number + 1 :]
            while at < len(seen) - len(after) and not [*differences(before, seen[at])]:
                at += 1
            continue
        if at >= len(seen):
            yield f"{where}[{at}]: missing, expected {_short(part)}"
            return
        yield from differences(part, seen[at], f"{where}[{at}]")
        at += 1
    if at < len(seen):
        yield f"{where}[{at}]: not expected, seen {_short(seen[at])}"


def _any_order(expected: list[Any], seen: list[Any], where: str) -> Iterator[str]:
    for part in expected:
        for number, one in enumerate(seen):
            if not [*differences(part, one)]:
                del seen[number]
                break
        else:
            yield f"{where}: nothing is {_short(part)}"
    for one in seen:
        yield f"{where}: not expected, seen {_short(one)}"


def _short(value: Any) -> str:
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 700 else f"{shown[:700]}..."


def seen_answer(answer: Answer, expected: Mapping[str, Any]) -> dict[str, Any]:
    """An answer in the shape of ``expect``; the body is read as the case expects it."""
    if answer.status is None:
        return {"status": None, "end": answer.end}
    seen: dict[str, Any] = {
        "status": answer.status,
        "content_type": answer.headers.get("content-type"),
        "framing": answer.framing,
        "end": answer.end,
    }
    if answer.interim:
        seen["interim"] = answer.interim
    if answer.rest:
        seen["headers"] = answer.rest
    if answer.framing == "none":
        if answer.headers.get("content-length", "0") != "0" or "content_length" in expected:
            seen["content_length"] = int(answer.headers.get("content-length", -1))
        return seen
    kind = next(iter(expected.get("body") or {"text": None}))
    seen["body"] = {kind: _read(answer.body, kind)}
    return seen


def _read(body: bytes, kind: str) -> Any:
    shown = body.decode(errors="replace")
    try:
        if kind == "json":
            return json.loads(shown)
        if kind == "ndjson":
            return [json.loads(line) for line in shown.splitlines()]
        if kind == "sse":
            return [_event(block) for block in shown.split("\n\n") if block.strip()]
    except ValueError:
        return {"not readable as": kind, "text": shown}
    return shown


def _event(block: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for line in block.strip().splitlines():
        name, _, value = line.partition(": ")
        made[name] = json.loads(value) if value.startswith(("{", "[{")) else value
    return made
