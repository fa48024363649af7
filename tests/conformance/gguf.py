"""The tiny Llama of the recorded cases as GGUF (ggml's docs/gguf.md): random weights, 118 K parameters."""

from __future__ import annotations

import array
import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conformance.cases import FOLDER

_ALIGN = 32
_FIRST, _PRINTABLE = 3, 94  # tokens of printable ASCII, after three special ones
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_MERGES = [
    "Ġ t",
    "Ġt h",
    "Ġth e",
    "Ġ q",
    "Ġq u",
    "Ġqu i",
    "Ġqui c",
    "Ġquic k",
    "Ġ h",
    "Ġh e",
    "Ġhe l",
    "Ġhel l",
    "Ġhell o",
    "Ġ w",
    "Ġw o",
    "Ġwo r",
    "Ġwor l",
    "Ġworl d",
    "Ġ o",
    "Ġo n",
    "Ġon e",
    "Ġt w",
    "Ġtw o",
]


def write(path: Path, *, seed: str, pooling: bool) -> None:
    """Header and tensors as /api/show has them of tiny-a, with ``pooling`` of tiny-e."""
    about = json.loads((FOLDER / "models/ollama.json").read_text())[
        "tiny-e" if pooling else "tiny-a"
    ]
    words = ["<unk>", "<s>", "</s>", *_bytes(), *(one.replace(" ", "") for one in _MERGES)]
    facts: dict[str, Any] = {
        key: value
        for key, value in about["info"].items()
        if value is not None and key != "general.parameter_count"
    }
    facts["tokenizer.ggml.tokens"] = words
    facts["tokenizer.ggml.token_type"] = [2, 3, 3, *([1] * (len(words) - 3))]
    facts["tokenizer.ggml.merges"] = _MERGES
    if not pooling:
        facts["tokenizer.chat_template"] = about["template"]
    draw = random.Random(seed)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(about["tensors"]), len(facts))
    head += b"".join(_text(key) + _value(value) for key, value in facts.items())
    data: list[bytes] = []
    embedding: array.array[float] = array.array("f")
    at = 0
    for one in about["tensors"]:
        shape = one["shape"]
        head += _text(one["name"]) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, at)
        weights = _weights(draw, one, embedding)
        embedding = weights if one["name"] == "token_embd.weight" else embedding
        data.append(_padded(weights.tobytes()))
        at += len(data[-1])
    path.write_bytes(_padded(head) + b"".join(data))


def _weights(
    draw: random.Random, tensor: Mapping[str, Any], embedding: array.array[float]
) -> array.array[float]:
    """Norms are 1. What comes out is printable ASCII: half of its tokens are the opposite of the other
    half, so 47 are always likelier than all other tokens, whose weights are 0, and only the likeliest
    40 are drawn from: no generation ends by itself. Each token leans towards itself, so that
    temperature 0 repeats one for ever, and temperature 1 does not. ``embedding``: it, once made.
    """
    shape, name = tensor["shape"], tensor["name"]
    if len(shape) == 1:
        return array.array("f", [1.0] * shape[0])
    spread = 0.08 if name == "output.weight" else 0.05
    made = array.array("f", (draw.gauss(0.0, spread) for _ in range(shape[0] * shape[1])))
    half, start = _PRINTABLE // 2 * shape[0], _FIRST * shape[0]
    if name == "output.weight":
        for at in range(start, start + half):
            made[at] += embedding[at]
    if name in {"output.weight", "token_embd.weight"}:
        opposite = [-one for one in made[start : start + half]]
        made[start + half : start + 2 * half] = array.array("f", opposite)
    if name == "output.weight":
        for token in [*range(_FIRST), *range(_FIRST + _PRINTABLE, shape[1])]:
            made[token * shape[0] : (token + 1) * shape[0]] = array.array("f", [0.0] * shape[0])
    return made


def _bytes() -> list[str]:
    """The 256 bytes in GPT-2's alphabet, the printable ones first."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    return [*(chr(byte) for byte in shown), *(chr(256 + number) for number in range(len(rest)))]


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value[0], str):
        items = b"".join(_text(one) for one in value)
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + items
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _I32, len(value), *value)


def _padded(raw: bytes) -> bytes:
    return raw + b"\0" * (-len(raw) % _ALIGN)
