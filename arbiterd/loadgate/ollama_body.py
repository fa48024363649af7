"""Request bodies as Ollama's Go reads them, clamped so that no client can undo a cap. Pure.

Go's encoding/json takes keys in any letter case (also 'ſ' for s and the Kelvin sign for k), lets the
last duplicate win, and merges an object into the map that an earlier duplicate has filled. The clamp
never relies on guessing right: every spelling of a clamped key is dropped and one canonical key is
written. What is no JSON for Go is refused here (docs/facts/gateway.md).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from arbiterd.engines.ollama_models import ANEW, BY_FIT, cap_tokens
from arbiterd.engines.ollama_names import same_model
from arbiterd.loadgate import go_duration, json_scan

_FOLDS = str.maketrans({"ſ": "s", "\u212a": "k"})
# Options that size a runner: another value makes Ollama load the model anew, at that size.
RUNNER_OPTIONS = frozenset(
    (
        *ANEW,
        "use_mlock",
        "low_vram",
        "f16_kv",
        "vocab_only",
        "logits_all",
        "embedding_only",
        "numa",
    )
)
# A context shift other than the runner's starts it anew, too; below /v1 the model's own holds.
_DROPPED = frozenset(("shift",))
_DROPPED_BELOW_V1 = _DROPPED | RUNNER_OPTIONS | {"options", "keep_alive"}
# Where a route below /v1 takes its number of tokens from; /v1/messages refuses 0 itself.
_TOKENS_BELOW_V1 = {
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
_SHORT = 4096  # bytes: longer values, arrays and objects are handed on as they stand
_OPTIONS_MAX = 64 * 1024  # bytes of Ollama's options, which are built and clamped
_PIECE = 256 * 1024  # bytes at a time to an engine


class BadBody(ValueError):
    """The body cannot be understood; the text says why."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """What every body for a model gets: one ``context_length`` and ``num_gpu`` (-1: by fit) on every
    route, never by the client.

    ``warm``: the model that stays for ever; all others leave after at most ``keep_alive_s``.
    ``endless``: its Modelfile's num_predict is 0, which nothing ends. ``leaving``: it was asked to
    leave when its last request ends, and a request that does not mention it must not undo that.
    """

    context_length: int
    keep_alive_s: float
    warm: str = ""
    num_gpu: int = BY_FIT
    endless: bool = False
    leaving: bool = False


class Unload(Enum):
    """What keep_alive 0 asks for. BARE: nothing else; AFTER: when the request has been answered."""

    NO = "no"
    BARE = "bare"
    AFTER = "after"


@dataclass(slots=True)
class Source:
    """The bytes of a body as it came. ``drop`` lets them go once they have been sent, whoever still
    holds a part of it.
    """

    raw: bytes | bytearray = b""

    def drop(self) -> None:
        """The parts are empty from now on."""
        self.raw = b""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a body from ``start`` to ``end``. ``empty``: as Go sees it (``[]``, ``{}``, ``""``)."""

    source: Source
    start: int
    end: int
    empty: bool = False

    def __len__(self) -> int:
        return self.end - self.start

    def __bool__(self) -> bool:
        return not self.empty


Sent = Sequence[bytes | Part]  # a body to send: text of ours, and parts of the client's


@dataclass(frozen=True, slots=True)
class Body:
    """``pairs``: the object's members in order, duplicates included; long values are Parts.
    ``model``: the one Go sees.
    """

    pairs: tuple[tuple[str, Any], ...]
    model: str


def whole(source: Source) -> Sent:
    """All of it, as it came."""
    return (Part(source, 0, len(source.raw)),)


def pieces(sent: Sent) -> Iterator[memoryview | bytes]:
    """At most _PIECE bytes at a time; nothing is copied."""
    for one in sent:
        if isinstance(one, bytes):
            yield one
            continue
        for at in range(one.start, one.end, _PIECE):
            yield memoryview(one.source.raw)[at : min(at + _PIECE, one.end)]


class _Pairs(list[tuple[str, Any]]):
    """An object with its duplicates."""


def fold(key: str) -> str:
    """The key as Go compares it with a field's name."""
    return key.translate(_FOLDS).lower()


def parse(raw: bytes | Source) -> Body:
    """Checked whole; built are only the members that the gate looks at.

    Raises:
        BadBody: no JSON object, more than one value, or what no engine could read (json_scan).

    """
    source = raw if isinstance(raw, Source) else Source(raw)
    _valid_utf8(source)
    try:
        found = json_scan.members(source.raw)
        pairs = tuple((key, _value(source, key, start, end)) for key, start, end in found)
    except json_scan.NotJson as error:
        msg = f"the body is not valid JSON: {error}"
        raise BadBody(msg) from None
    model = ""
    for key, value in pairs:
        if fold(key) == "model":
            if value is not None and not isinstance(value, str):
                msg = "model must be a string"
                raise BadBody(msg)
            model = value if value is not None else model  # null leaves Go's field as it is
    return Body(pairs, model)


def _valid_utf8(source: Source) -> None:
    """Go replaces invalid UTF-8 by U+FFFD; vLLM would refuse it, and so is a large body: the text of one
    takes up to four times its size.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(source.raw)
    try:
        for at in range(0, len(view), _PIECE):
            decoder.decode(view[at : at + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        if len(view) > _PIECE:
            msg = "the body is not valid UTF-8"
            raise BadBody(msg) from None
        source.raw = bytes(view).decode("utf-8", "replace").encode()


def _value(source: Source, key: str, start: int, end: int) -> Any:
    """A short scalar, Ollama's options, or a Part."""
    first = source.raw[start : start + 1]
    options = fold(key) == "options" and first == b"{"
    if options and end - start > _OPTIONS_MAX:
        msg = f"options are larger than {_OPTIONS_MAX} bytes"
        raise BadBody(msg)
    if options or (first not in (b"{", b"[") and end - start <= _SHORT):
        try:
            return json.loads(bytes(source.raw[start:end]), object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits
            msg = f"the body is not valid JSON: {str(error)[:120]}"
            raise BadBody(msg) from None
    inside = bytes(source.raw[start + 1 : min(end - 1, start + _SHORT)])
    return Part(source, start, end, empty=end - start <= _SHORT and not inside.strip())


def member(body: Body, name: str) -> Any:
    """The member that Go puts into this field, None when it has none or null. A later null leaves a
    field as it is, but empties a pointer, as keep_alive is one (api/types.go; encoding/json).
    """
    values = [value for key, value in body.pairs if fold(key) == name]
    if name != "keep_alive":
        values = [value for value in values if value is not None]
    return values[-1] if values else None


def unload(body: Body, path: str) -> Unload:
    """Whether the model is to leave at once (keep_alive 0 on a native route)."""
    if path.startswith("/v1/") or not is_zero(member(body, "keep_alive")):
        return Unload.NO
    asked = {"/api/chat": "messages", "/api/embed": "input"}.get(path, "prompt")
    return Unload.AFTER if member(body, asked) else Unload.BARE


def keeps(body: Body, path: str) -> bool:
    """Whether it asks for the model to stay: that takes back an earlier keep_alive 0."""
    return not path.startswith("/v1/") and member(body, "keep_alive") is not None


def clamped(body: Body, clamp: Clamp, *, v1: bool, path: str = "") -> Sent:
    """The body to send: every clamped key once, in canonical spelling."""
    name = body.model
    kept: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in body.pairs:
        folded = fold(key)
        if folded == "model" or folded in _DROPPED:
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
            _duration(value)
            kept[folded] = value
            continue
        # duplicates of other keys: Go takes the last, in whatever case it is written
        for old in [k for k in kept if fold(k) == folded and k != key]:
            del kept[old]
        kept[key] = value
    asked = kept.pop("keep_alive", None)
    out: dict[str, Any] = {"model": name, **kept}
    if v1:
        tokens = _TOKENS_BELOW_V1.get(path, "")
        _end(out, next((key for key in out if fold(key) == tokens), tokens), clamp)
    else:
        _end(options, "num_predict", clamp)
        out["options"] = {
            **options,
            "num_ctx": clamp.context_length,
            "num_gpu": clamp.num_gpu,
        }
        out["keep_alive"] = keep_alive(asked, clamp, name)
    return _written(out)


def _duration(value: Any) -> None:
    """Ollama refuses a body with a keep_alive that is no duration, before it loads anything."""
    if isinstance(value, Part):
        value = value.source.raw[value.start : value.start + 1]
    try:
        if value is not None:
            go_duration.seconds(value)
    except ValueError as error:
        raise BadBody(str(error)) from None


def _written(members: dict[str, Any]) -> Sent:
    """As JSON, the parts in between."""
    out: list[bytes | Part] = []
    text = b"{"
    for number, (key, value) in enumerate(members.items()):
        text += (b"," if number else b"") + json.dumps(key).encode() + b":"
        if isinstance(value, Part):
            out += [text, value]
            text = b""
        else:
            try:
                plain = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
            except RecursionError:
                msg = f"{key} is nested too deeply"
                raise BadBody(msg) from None
            text += plain.encode()
    return [*out, text + b"}"]


def _end(fields: dict[str, Any], name: str, clamp: Clamp) -> None:
    """0 tokens are no end for Ollama, every other number is capped: 0 becomes that very cap."""
    asked = fields.get(name)
    if asked is None:
        zero = clamp.endless
    else:  # Go cuts the fraction off
        number = isinstance(asked, int | float) and not isinstance(asked, bool)
        zero = number and -1 < asked < 1
    if name and zero:
        fields[name] = cap_tokens(clamp.context_length)


def _plain(value: Any) -> Any:
    """Objects with duplicates become plain ones; the last wins."""
    if isinstance(value, _Pairs):
        return {key: _plain(one) for key, one in value}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def keep_alive(asked: object, clamp: Clamp, model: str) -> int | str:
    """0 when it shall leave; for ever for the warm model; else what was asked, at most the configured
    time, which a negative one means as well.
    """
    if is_zero(asked) or (asked is None and clamp.leaving):
        return 0
    if clamp.warm and same_model(model, clamp.warm):
        return -1
    most = max(1, round(clamp.keep_alive_s))
    seconds = go_seconds(asked)
    if seconds is None or seconds <= 0 or seconds > most:
        return f"{most}s"
    return f"{max(1, round(seconds))}s"


def is_zero(asked: object) -> bool:
    """Whether Ollama reads a duration of no nanosecond."""
    seconds = go_seconds(asked)
    return seconds is not None and 0 <= seconds < 1e-9


def go_seconds(value: object) -> float | None:
    """Ollama's Duration in seconds. None: not given, or none at all."""
    if value is None:
        return None
    try:
        return go_duration.seconds(value)
    except ValueError:
        return None
