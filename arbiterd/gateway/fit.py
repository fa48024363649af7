"""How much GPU memory a model will take in Ollama, before it is loaded (design, section 4). Pure.

weights x 1.03 + KV cache (context x slots, f16) + 0.95 GiB for context, graph and buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WEIGHTS_FACTOR = 1.03
FIXED_BYTES = int(0.95 * 1024**3)
KV_BYTES_PER_VALUE = 2  # f16
# Of a model whose shape /api/show does not tell: as much as an 8B with 8 KV heads has per token.
KV_PER_TOKEN_UNKNOWN = 128 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """``weights_bytes``: size on disk; ``kv_per_token``: bytes of KV cache per token of context."""

    weights_bytes: int
    kv_per_token: int


def shape_of(size_bytes: int, show: Mapping[str, Any]) -> Shape:
    """From /api/tags (size) and /api/show (model_info of the GGUF header)."""
    info = show.get("model_info")
    if not isinstance(info, Mapping):
        return Shape(size_bytes, KV_PER_TOKEN_UNKNOWN)
    arch = str(info.get("general.architecture", ""))

    def number(key: str) -> int:
        value = info.get(f"{arch}.{key}")
        if isinstance(value, list):  # some architectures tell it per layer
            return max((int(one) for one in value if isinstance(one, int | float)), default=0)
        return int(value) if isinstance(value, int | float) else 0

    layers, heads = number("block_count"), number("attention.head_count")
    kv_heads = number("attention.head_count_kv") or heads
    width = number("embedding_length") // heads if heads else 0
    key = number("attention.key_length") or width
    value = number("attention.value_length") or width
    per_token = layers * kv_heads * (key + value) * KV_BYTES_PER_VALUE
    return Shape(size_bytes, per_token or KV_PER_TOKEN_UNKNOWN)


def predicted_bytes(shape: Shape, context_length: int, parallel: int) -> int:
    """Bytes on the device, context of CUDA included."""
    kv = shape.kv_per_token * context_length * max(1, parallel)
    return int(shape.weights_bytes * WEIGHTS_FACTOR) + kv + FIXED_BYTES


def context_that_fits(shape: Shape, room_bytes: int, parallel: int) -> int:
    """The longest context that fits, in steps of 1024; 0: not even the weights do."""
    left = room_bytes - int(shape.weights_bytes * WEIGHTS_FACTOR) - FIXED_BYTES
    tokens = left // max(1, shape.kv_per_token * max(1, parallel))
    return max(0, tokens // 1024 * 1024)
