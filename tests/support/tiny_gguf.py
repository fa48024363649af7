"""A tiny Llama as GGUF, written without any library: random weights, about 480 KB, loaded in a tenth of a
second. Format: ggml's docs/gguf.md.

It says letters only, at any temperature: one channel is the same for all tokens, and in the output every
other token has a large negative weight there. So a generation ends by ``num_predict`` alone, and no control
token or half character confuses llama.cpp's chat parsers. It does not repeat itself (Ollama ends a stream
that says the same token thirty times) unless the temperature is 0.
"""

from __future__ import annotations

import array
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH, LAYERS, HEADS, FEED, CONTEXT = 64, 2, 2, 128, 4096
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
_ALIGN = 32
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_EOS = 2
_WORDS = (
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    *"abcdefghijklmnopqrstuv",
)
_KINDS = (2, 3, 3, *([6] * 256), *([1] * 23))  # unknown, control, bytes, normal
Value = int | float | str | bool | Sequence[str] | Sequence[float] | Sequence[int]


def write(path: Path, *, seed: int = 1, pooling: bool = False, context: int = CONTEXT) -> None:
    """Write the model. ``seed``: another one is another blob. ``pooling``: an embedding model."""
    draw = random.Random(seed)
    tensors = _tensors(draw)
    facts: dict[str, Value] = {
        "general.architecture": "llama",
        "general.name": f"tiny {seed}",
        "llama.context_length": context,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FEED,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.vocab_size": len(_WORDS),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": _WORDS,
        "tokenizer.ggml.scores": tuple(-float(number) for number in range(len(_WORDS))),
        "tokenizer.ggml.token_type": _KINDS,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": _EOS,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if pooling:
        facts["llama.pooling_type"] = 1  # the mean
    else:
        facts["tokenizer.chat_template"] = TEMPLATE
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(facts))
    head += b"".join(_text(key) + _value(value) for key, value in facts.items())
    at = 0
    data = []
    for name, (shape, values) in tensors.items():
        head += _text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, at)
        data.append(_padded(values.tobytes()))
        at += len(data[-1])
    path.write_bytes(_padded(head) + b"".join(data))


def _tensors(draw: random.Random) -> Mapping[str, tuple[tuple[int, ...], array.array[float]]]:
    """Name → (dimensions, the fastest first; values)."""
    out: dict[str, tuple[tuple[int, ...], array.array[float]]] = {}

    def add(name: str, *shape: int, spread: float = 0.05) -> None:
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        out[name] = (shape, array.array("f", (draw.gauss(0.0, spread) for _ in range(count))))

    def ones(name: str) -> None:
        out[name] = ((WIDTH,), array.array("f", [1.0] * WIDTH))

    add("token_embd.weight", WIDTH, len(_WORDS))
    add("output.weight", WIDTH, len(_WORDS), spread=0.5)
    for number, word in enumerate(_WORDS):
        out["token_embd.weight"][1][number * WIDTH] = 1.0
        letter = len(word) == 1 and word.isalpha()
        out["output.weight"][1][number * WIDTH] = 0.0 if letter else -50.0
    ones("output_norm.weight")
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        ones(f"{at}.attn_norm.weight")
        ones(f"{at}.ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{at}.{name}.weight", WIDTH, WIDTH)
        add(f"{at}.ffn_gate.weight", WIDTH, FEED)
        add(f"{at}.ffn_up.weight", WIDTH, FEED)
        add(f"{at}.ffn_down.weight", FEED, WIDTH)
    return out


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    first = value[0]
    if isinstance(first, str):
        items = b"".join(_text(str(one)) for one in value)
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + items
    kind, form = (_F32, "f") if isinstance(first, float) else (_I32, "i")
    return struct.pack(f"<IIQ{len(value)}{form}", _ARRAY, kind, len(value), *value)


def _padded(raw: bytes) -> bytes:
    return raw + b"\0" * (-len(raw) % _ALIGN)
