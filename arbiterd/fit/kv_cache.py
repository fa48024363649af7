"""The KV cache of a model, from its shape. Pure; integers from files are bounded here.

Sources: llama.cpp's llama-kv-cache-iswa.cpp and ``set_swa_pattern`` of its architectures; vLLM's
kv_cache_interface (FullAttentionSpec, SlidingWindowSpec, MLAAttentionSpec).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from arbiterd.fit.types import KvLayers

MAX_LAYERS = 4096
MAX_VALUES = 1 << 24  # per token and layer; the largest published models have some 10^4
MAX_CONTEXT = 1 << 28
# Period of the layers that see the whole context where the GGUF header does not tell it: every n-th.
_GGUF_PATTERN = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "gptoss": 2, "cohere2": 4}
_UBATCH = 512  # llama.cpp's default
_PAD = 256
VLLM_BLOCK = 16  # tokens


def grouped(rows: Iterable[tuple[int, int, int]]) -> tuple[KvLayers, ...]:
    """(values, heads, window) per layer as groups of equal layers; layers without a cache go."""
    counts = Counter(row for row in rows if row[0] > 0)
    return tuple(
        KvLayers(n, values, heads, window) for (values, heads, window), n in counts.items()
    )


def gguf_layers(info: Mapping[str, Any]) -> tuple[KvLayers, ...]:
    """From the metadata of a GGUF header (/api/show calls it model_info); () when it does not tell."""
    arch = str(info.get("general.architecture", ""))

    def number(key: str) -> int:
        value = info.get(f"{arch}.{key}")
        if isinstance(value, list):
            value = max((one for one in value if isinstance(one, int)), default=0)
        sane = isinstance(value, int | float) and 0 <= value <= MAX_VALUES
        return int(value) if sane and value is not None else 0

    layers = number("block_count")
    if not 0 < layers <= MAX_LAYERS:
        return ()
    heads = number("attention.head_count")
    per_layer = info.get(f"{arch}.attention.head_count_kv")
    one = number("attention.head_count_kv") or heads
    kv_heads = [one] * layers
    if isinstance(per_layer, list) and len(per_layer) == layers:
        sane = [isinstance(n, int) and 0 <= n <= MAX_VALUES for n in per_layer]
        kv_heads = [int(n) if ok else one for n, ok in zip(per_layer, sane, strict=True)]
    width = number("embedding_length") // heads if heads else 0
    both = (number("attention.key_length") or width) + (number("attention.value_length") or width)
    interval = number("full_attention_interval")
    if interval > 1:  # the others have a state of fixed size
        kv_heads = [n if (i + 1) % interval == 0 else 0 for i, n in enumerate(kv_heads)]
    windows = _gguf_windows(info, arch, layers, number("attention.sliding_window"))
    rows = [
        (n * both, n, window)
        for n, window in zip(kv_heads, windows, strict=True)
        if n * both <= MAX_VALUES
    ]
    return grouped(rows)


def _gguf_windows(info: Mapping[str, Any], arch: str, layers: int, window: int) -> list[int]:
    """The window of each layer. Where the pattern is unknown all see the whole context: the larger."""
    pattern = info.get(f"{arch}.attention.sliding_window_pattern", _GGUF_PATTERN.get(arch, 1))
    if isinstance(pattern, list) and len(pattern) == layers:
        return [window if slides is True else 0 for slides in pattern]
    if not isinstance(pattern, int) or isinstance(pattern, bool) or not 1 < pattern <= MAX_LAYERS:
        return [0] * layers
    return [window if i % pattern < pattern - 1 else 0 for i in range(layers)]


def ollama_kv_bytes(
    layers: Iterable[KvLayers],
    context: int,
    slots: int,
    value_bytes: float = 2.0,
    *,
    batch: int = _UBATCH,
) -> int:
    """The cache llama.cpp allocates for ``slots`` sequences of ``context`` tokens, bytes.

    ``batch``: tokens of one step; a windowed cache holds window + one batch.
    """
    total = 0.0
    for one in layers:
        cells = context
        if one.window:
            cells = min(context, -(-(one.window + batch) // _PAD) * _PAD)
        total += one.count * one.values * cells * max(1, slots) * value_bytes
    return int(total)


def vllm_kv_bytes(
    layers: Iterable[KvLayers],
    tokens: int,
    value_bytes: float,
    *,
    ranks: int = 1,
    stages: int = 1,
    batched: int = 2048,
) -> int:
    """What one request of ``tokens`` needs on each device, bytes.

    ``ranks``: tensor parallel, which splits KV heads (one head is the least), a latent vector never;
    ``stages``: pipeline parallel; ``batched``: tokens of one step, kept beside a window.
    """
    total = 0.0
    for one in layers:
        values = float(one.values)
        if one.heads:
            values = one.values / one.heads * -(-one.heads // max(1, ranks))
        kept = tokens
        if one.window:
            kept = min(one.window - 1 + batched, tokens) + VLLM_BLOCK
        blocks = -(-kept // VLLM_BLOCK) * VLLM_BLOCK
        total += one.count * values * blocks * value_bytes
    return int(total / max(1, stages))
