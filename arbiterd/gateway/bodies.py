"""Request bodies as Ollama's Go reads them, clamped so that no client can undo a cap. Pure.

Go's encoding/json takes keys in any letter case (also 'ſ' for s and the Kelvin sign for k), lets the
last duplicate win, and merges an object into the map that an earlier duplicate has filled. The clamp
never relies on guessing right: every spelling of a clamped key is dropped and one canonical key is
written. What is no JSON for Go is refused here (docs/facts/gateway.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from arbiterd.engines.ollama_names import same_model

_FOLDS = str.maketrans({"ſ": "s", "\u212a": "k"})
# Options that size a runner: another value makes Ollama load the model anew, at that size.
RUNNER_OPTIONS = frozenset(
    (
        "num_ctx",
        "num_gpu",
        "num_batch",
        "main_gpu",
        "num_thread",
        "use_mmap",
        "use_mlock",
        "low_vram",
        "f16_kv",
        "vocab_only",
        "logits_all",
        "embedding_only",
        "numa",
    )
)
_DROPPED_BELOW_V1 = RUNNER_OPTIONS | {"options", "keep_alive"}
_DEPTH_MAX = 500  # Go stops at 10,000; Python's own parser much earlier


class BadBody(ValueError):
    """The body cannot be understood; the text says why."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """What every body to this Ollama gets. ``num_gpu`` -1: by fit, never by the client.

    ``warm``: the model that stays for ever; all others leave after at most ``keep_alive_s``.
    """

    context_length: int
    keep_alive_s: float
    warm: str = ""
    num_gpu: int = -1


@dataclass(frozen=True, slots=True)
class Body:
    """``pairs``: the object's members in order, duplicates included. ``model``: the one Go sees."""

    pairs: tuple[tuple[str, Any], ...]
    model: str


class _Pairs(list[tuple[str, Any]]):
    """An object with its duplicates."""


def fold(key: str) -> str:
    """The key as Go compares it with a field's name."""
    return key.translate(_FOLDS).lower()


def parse(raw: bytes) -> Body:
    """Parse once.

    Raises:
        BadBody: no JSON object, or more than one value.

    """
    try:
        # Go replaces invalid UTF-8 by U+FFFD
        found = json.loads(
            raw.decode("utf-8", "replace"), object_pairs_hook=_Pairs, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        msg = f"the body is no JSON: {str(error)[:120]}"
        raise BadBody(msg) from None
    if not isinstance(found, _Pairs):
        msg = "the body is no JSON object"
        raise BadBody(msg)
    model = ""
    for key, value in found:
        if fold(key) == "model":
            if value is not None and not isinstance(value, str):
                msg = "model must be a string"
                raise BadBody(msg)
            model = value if value is not None else model  # null leaves Go's field as it is
    return Body(tuple(found), model)


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON"
    raise ValueError(msg)


def clamped(body: Body, clamp: Clamp, *, v1: bool, model: str = "") -> bytes:
    """The body to send: every clamped key once, in canonical spelling. ``model``: another name."""
    name = model or body.model
    kept: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in body.pairs:
        folded = fold(key)
        if folded == "model":
            continue
        if v1 and folded in _DROPPED_BELOW_V1:
            continue
        if folded == "options":
            if isinstance(value, _Pairs):
                options.update({k: v for k, v in value if fold(k) not in RUNNER_OPTIONS})
            elif value is None:
                options = {}
            else:
                msg = "options must be an object"
                raise BadBody(msg)
            continue
        if folded == "keep_alive":
            kept[folded] = value
            continue
        # duplicates of other keys: Go takes the last, in whatever case it is written
        for old in [k for k in kept if fold(k) == folded and k != key]:
            del kept[old]
        kept[key] = value
    asked = kept.pop("keep_alive", None)
    out: dict[str, Any] = {"model": name, **kept}
    if not v1:
        out["options"] = {
            **options,
            "num_ctx": clamp.context_length,
            "num_gpu": clamp.num_gpu,
        }
        out["keep_alive"] = keep_alive(asked, clamp, name)
    return json.dumps(_plain(out), separators=(",", ":")).encode()


def _plain(value: Any, depth: int = 0) -> Any:
    """Objects with duplicates become plain ones; the last wins."""
    if depth > _DEPTH_MAX:
        msg = f"the body is nested more than {_DEPTH_MAX} deep"
        raise BadBody(msg)
    if isinstance(value, _Pairs):
        return {key: _plain(one, depth + 1) for key, one in value}
    if isinstance(value, dict):
        return {key: _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, depth + 1) for one in value]
    return value


def keep_alive(asked: object, clamp: Clamp, model: str) -> int | str:
    """For ever for the warm model; else what was asked, at most the configured time."""
    if clamp.warm and same_model(model, clamp.warm):
        return -1
    most = max(1, round(clamp.keep_alive_s))
    seconds = go_seconds(asked)
    if seconds is None or seconds <= 0 or seconds > most:
        return f"{most}s"
    return f"{max(1, round(seconds))}s"


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def go_seconds(value: object) -> float | None:
    """Ollama's Duration: a number of seconds, or Go's '1h30m'. None when it is neither."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    text = str(value).strip()
    sign, text = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    total, number = 0.0, ""
    while text:
        if text[0].isdigit() or text[0] == ".":
            number, text = number + text[0], text[1:]
            continue
        unit = next((u for u in ("ns", "us", "µs", "ms", "s", "m", "h") if text.startswith(u)), "")
        if not unit or not number.strip("."):
            return None
        try:
            total += float(number) * _UNITS[unit]
        except ValueError:
            return None
        number, text = "", text[len(unit) :]
    return None if number else sign * total
