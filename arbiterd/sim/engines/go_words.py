"""Go's own words, as clients of a real Ollama get them: JSON errors, durations, log lines."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

FOR_EVER_S = (2**63 - 1) / 1e9  # time.Duration's largest: 292 years
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_KINDS = {
    bool: "bool",
    str: "string",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
}


class Refused(Exception):
    """What a handler answers instead: Ollama's text and its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Pairs(list[tuple[str, Any]]):
    """A JSON object with all its keys, also those given twice."""

    def merged(self) -> dict[str, Any]:
        """As Go decodes into a map; the last of equal keys wins."""
        return {key: plain(value) for key, value in self}


def plain(value: Any) -> Any:
    """Nested ``Pairs`` as dicts."""
    if isinstance(value, Pairs):
        return value.merged()
    return [plain(one) for one in value] if isinstance(value, list) else value


def duration(text: str) -> float:
    """Seconds, by time.ParseDuration.

    Raises:
        ValueError: in its words.
    """
    rest = text[1:] if text[:1] in {"-", "+"} else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest):
        found = _PART.match(rest, at)
        if found is None:
            break
        if not found[2]:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if found[2] not in _UNITS:
            raise ValueError(f'time: unknown unit "{found[2]}" in duration "{text}"')
        total += float(found[1]) * _UNITS[found[2]]
        at = found.end()
    if not rest or at < len(rest):
        raise ValueError(f'time: invalid duration "{text}"')
    return -total if text[0] == "-" else total


def keep_alive(given: Any) -> float:
    """Seconds of a request's keep_alive (api.Duration): a number of seconds or Go's words; negative
    is for ever.

    Raises:
        Refused: 400 in Go's words.
    """
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        kind = "bool" if isinstance(given, bool) else "[]interface {}"
        if isinstance(given, dict):
            kind = "map[string]interface {}"
        raise Refused(400, f"Unsupported type: '{kind}'")
    try:
        seconds = duration(given) if isinstance(given, str) else float(given)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    return FOR_EVER_S if seconds < 0 or math.isinf(seconds) else seconds


def decode(raw: bytes, name: str, fields: Mapping[str, str], *, empty: str) -> dict[str, Any]:
    """A body as Go decodes it into the struct ``name``: keys in any case, of two spellings the last
    wins, objects of maps merge, trailing text is not looked at. ``fields``: Go's type of each.

    Raises:
        Refused: 400 in Go's words; ``empty`` for no body at all.
    """
    text = raw.decode(errors="replace")
    stripped = text.lstrip(" \t\r\n")
    if not stripped:
        raise Refused(400, empty)
    value = _parse(stripped)
    if not isinstance(value, Pairs):
        raise Refused(
            400, f"json: cannot unmarshal {_kind(value)} into Go value of type {_spoken(name)}"
        )
    found: dict[str, Any] = {}
    by_fold = {key.casefold(): key for key in fields}
    for key, one in value:
        known = by_fold.get(key.casefold())
        if known is None or one is None:
            continue
        _check(name, known, fields[known], one)
        if isinstance(one, Pairs) and isinstance(found.get(known), dict):
            found[known] |= one.merged()
        else:
            found[known] = plain(one)
    return found


def _spoken(name: str) -> str:
    native = name in {"GenerateRequest", "ChatRequest", "EmbedRequest", "EmbeddingRequest"}
    return f"api.{name}" if native else f"openai.{name}"


def _kind(value: Any) -> str:
    return "object" if isinstance(value, Pairs) else _KINDS[type(value)]


def _check(name: str, field: str, wanted: str, value: Any) -> None:
    """Whether Go's decoder takes the value for a field of that type; "any" takes all."""
    kind = _kind(value)
    if wanted == "[]api.Message" and isinstance(value, list):
        for one in value:
            if not isinstance(one, Pairs):
                raise Refused(
                    400, f"json: cannot unmarshal {_kind(one)} into Go value of type api.Alias"
                )
            for key, content in one:
                if key.casefold() == "content" and not isinstance(content, str | None):
                    where = f"{_kind(content)} into Go struct field Alias.content"
                    raise Refused(400, f"json: cannot unmarshal {where} of type string")
    takes = {
        "string": kind == "string",
        "bool": kind == "bool",
        "int": kind == "number" and isinstance(value, int),
        "float64": kind == "number",
        "map[string]interface {}": kind == "object",
        "any": True,
    }.get(wanted, kind == "array")
    if not takes:
        raise Refused(
            400,
            f"json: cannot unmarshal {kind} into Go struct field {name}.{field} of type {wanted}",
        )


def _parse(text: str) -> Any:
    for word in ("null", "true", "false"):
        if text[0] == word[0] and not text.startswith(word):
            at = next((n for n, c in enumerate(word) if text[n : n + 1] != c), 0)
            if at >= len(text):
                raise Refused(400, "unexpected EOF")
            wanted = f"in literal {word} (expecting '{word[at]}')"
            raise Refused(400, f"invalid character {_quoted(text[at])} {wanted}")
    if text[0] not in '{["-0123456789tfn':
        raise Refused(400, f"invalid character {_quoted(text[0])} looking for beginning of value")
    try:
        value, _ = json.JSONDecoder(object_pairs_hook=Pairs, strict=False).raw_decode(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or "Unterminated" in error.msg:
            raise Refused(400, "unexpected EOF") from None
        after = (
            "looking for beginning of object key string"
            if "property name" in error.msg
            else "looking for beginning of value"
        )
        raise Refused(400, f"invalid character {_quoted(text[error.pos])} {after}") from None
    except RecursionError:
        raise Refused(400, "exceeded max depth") from None
    return value


def _quoted(char: str) -> str:
    if char.isprintable():
        return f"'{char}'"
    return f"'\\x{ord(char):02x}'" if ord(char) < 128 else f"'\\u{ord(char):04x}'"


def log(level: str, source: str, msg: str, **fields: object) -> None:
    """A line as Go's slog writes it; a field's name may have a dot written as two underscores."""
    shown = [f"{name.replace('__', '.')}={_value(value)}" for name, value in fields.items()]
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    words = [f"time={now}", f"level={level}", f"source={source}", f"msg={_value(msg)}", *shown]
    sys.stderr.write(" ".join(words) + "\n")
    sys.stderr.flush()


def _value(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or re.search(r'[\s"=]', text) else text


def stamp(epoch_s: float) -> str:
    """RFC 3339 in UTC with nanoseconds."""
    whole = datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{int(epoch_s % 1 * 1e9):09d}Z"


def access(status: int, took_s: float, method: str, path: str) -> None:
    """gin's access line."""
    now = datetime.now().strftime("%Y/%m/%d - %H:%M:%S")  # noqa: DTZ005 - local, as gin's
    took = f"{took_s * 1e3:.6f}ms" if took_s < 1 else f"{took_s:.9f}s"
    sys.stderr.write(
        f'[GIN] {now} | {status} | {took:>13} | {"127.0.0.1":>15} | {method:<7}  "{path}"\n'
    )
    sys.stderr.flush()
