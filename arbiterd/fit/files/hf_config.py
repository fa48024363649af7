"""A Hugging Face config.json as layers and sizes. Key names are those of transformers' configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arbiterd.fit.files.read import Unreadable, whole
from arbiterd.fit.kv_cache import MAX_CONTEXT, MAX_LAYERS, grouped
from arbiterd.fit.types import KvLayers

_HEADS = 1 << 16
_WIDTH = 1 << 24
# Where models nest the language model's own configuration.
_NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
_LENGTHS = (  # vLLM takes the smallest of those that are there
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
)
_WIDTHS = {
    "float32": 4,
    "float": 4,
    "float64": 8,
    "float16": 2,
    "half": 2,
    "bfloat16": 2,
}
# Rope types whose max_position_embeddings holds the stretched length already (vLLM config/model.py).
_LONG_ALREADY = ("su", "longrope", "llama3", "mrope", "default", "")


@dataclass(frozen=True, slots=True)
class HfShape:
    """What config.json says. ``quantised``: the method named by quantization_config, "" for none;
    ``kv_bytes``: of a cached value if the checkpoint asks for it, else 0. ``config_dtype_bytes``:
    of torch_dtype, 2 when it names none. ``media``: it has an encoder of images or sound.
    """

    layers: tuple[KvLayers, ...]
    stateful_layers: int
    context: int
    vocab: int
    hidden: int
    intermediate: int
    quantised: str
    kv_bytes: float
    config_dtype_bytes: int
    media: bool


def dtype_width(name: str) -> int:
    """Bytes of a dtype by name ('torch.bfloat16' too), 0 when unknown."""
    return _WIDTHS.get(name.removeprefix("torch."), 0)


def read_config(config: Mapping[str, Any], path: Path) -> HfShape:
    """Interpret a configuration.

    Raises:
        Unreadable: a count in it is none.

    """
    text: Mapping[str, Any] = config
    for key in _NESTED * 2:  # thinker_config holds a text_config of its own
        inner = text.get(key)
        if isinstance(inner, Mapping):
            text = inner
    layers, stateful = _layers(text, path)
    quantisation = config.get("quantization_config") or text.get("quantization_config") or {}
    quantisation = quantisation if isinstance(quantisation, Mapping) else {}
    scheme = quantisation.get("kv_cache_scheme")
    fp8 = isinstance(scheme, Mapping) and scheme.get("num_bits") == 8
    method = str(quantisation.get("quant_method", "")) or ("unknown" if quantisation else "")
    named = _dtype(text) or _dtype(config)
    return HfShape(
        layers=layers,
        stateful_layers=stateful,
        context=_context(text, path),
        vocab=whole(text, "vocab_size", 1 << 24, path),
        hidden=whole(text, "hidden_size", _WIDTH, path) or whole(text, "n_embd", _WIDTH, path),
        intermediate=_intermediate(text, path),
        quantised=method[:40],
        kv_bytes=1.0 if fp8 or quantisation.get("kv_cache_quant_algo") == "FP8" else 0.0,
        config_dtype_bytes=dtype_width(named) or 2,
        media=any(isinstance(config.get(k), Mapping) for k in ("vision_config", "audio_config")),
    )


def _dtype(config: Mapping[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def _intermediate(text: Mapping[str, Any], path: Path) -> int:
    value = text.get("intermediate_size")
    if isinstance(value, list):  # one per layer
        return max((one for one in value if isinstance(one, int) and 0 <= one <= _WIDTH), default=0)
    return whole(text, "intermediate_size", _WIDTH, path) or whole(text, "n_inner", _WIDTH, path)


def _context(text: Mapping[str, Any], path: Path) -> int:
    """The longest sequence it was made for; rope scaling multiplies it as vLLM does."""
    found = [whole(text, key, 1 << 40, path) for key in _LENGTHS]
    known = [one for one in found if one]
    if not known:
        return 0
    length = min(known)
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    if isinstance(rope, Mapping):
        kind = str(rope.get("rope_type") or rope.get("type") or "")
        factor = rope.get("factor")
        if kind not in _LONG_ALREADY and isinstance(factor, int | float) and 1 <= factor <= 1024:
            original = rope.get("original_max_position_embeddings")
            sane = isinstance(original, int) and 0 < original <= MAX_CONTEXT
            base = original if kind == "yarn" and sane and isinstance(original, int) else length
            length = int(base * factor)
    return min(length, MAX_CONTEXT)


def _layers(text: Mapping[str, Any], path: Path) -> tuple[tuple[KvLayers, ...], int]:
    """(layers with a cache, number of layers with a state instead)."""
    count = (
        whole(text, "num_hidden_layers", MAX_LAYERS, path)
        or whole(text, "n_layer", MAX_LAYERS, path)
        or whole(text, "num_layers", MAX_LAYERS, path)
    )
    values, heads = _values(text, path)
    if not count or not values:
        return (), 0
    kinds = _kinds(text, count, path)
    window = whole(text, "sliding_window", MAX_CONTEXT, path)
    chunk = whole(text, "attention_chunk_size", MAX_CONTEXT, path)
    rows = []
    for kind in kinds:
        looks_back = {"window": window, "chunk": chunk}.get(kind, 0)
        if kind != "state":
            rows.append((values, heads, looks_back))
    return grouped(rows), kinds.count("state")


def _values(text: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """(values cached per token and layer, KV heads); latent attention has no heads."""
    latent = whole(text, "kv_lora_rank", _WIDTH, path)
    if latent:
        return latent + whole(text, "qk_rope_head_dim", _WIDTH, path), 0
    heads = whole(text, "num_attention_heads", _HEADS, path) or whole(text, "n_head", _HEADS, path)
    kv_heads = (
        whole(text, "num_key_value_heads", _HEADS, path)
        or whole(text, "num_kv_heads", _HEADS, path)
        or whole(text, "multi_query_group_num", _HEADS, path)
        or (1 if text.get("multi_query") is True else heads)
    )
    hidden = whole(text, "hidden_size", _WIDTH, path) or whole(text, "n_embd", _WIDTH, path)
    width = whole(text, "head_dim", _WIDTH, path) or (hidden // heads if heads else 0)
    value = whole(text, "v_head_dim", _WIDTH, path) or width
    if kv_heads * (width + value) > _WIDTH:
        raise Unreadable(f"{path}: {kv_heads} KV heads of {width} are beyond all bounds")
    return kv_heads * (width + value), kv_heads


def _kinds(text: Mapping[str, Any], count: int, path: Path) -> list[str]:
    """Per layer: full, window, chunk or state."""
    given = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(given, list) and len(given) == count:
        return [_kind(str(one)) for one in given]
    pattern = text.get("hybrid_override_pattern")  # Nemotron-H: * attention, M Mamba, - MLP
    if isinstance(pattern, str) and len(pattern) == count:
        return ["full" if c == "*" else "state" for c in pattern if c in "*M"]
    interval = whole(text, "full_attention_interval", MAX_LAYERS, path)
    if interval:
        return ["full" if (i + 1) % interval == 0 else "state" for i in range(count)]
    period = whole(text, "attn_layer_period", MAX_LAYERS, path)  # Jamba
    if period:
        offset = whole(text, "attn_layer_offset", MAX_LAYERS, path)
        return ["full" if i % period == offset else "state" for i in range(count)]
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return ["full"] * count
    slides = whole(text, "sliding_window_pattern", MAX_LAYERS, path)
    if slides > 1:
        return ["full" if (i + 1) % slides == 0 else "window" for i in range(count)]
    if text.get("use_sliding_window") is True:  # Qwen2: the first max_window_layers see everything
        wide = whole(text, "max_window_layers", MAX_LAYERS, path)
        return ["full" if i < wide else "window" for i in range(count)]
    return ["window"] * count


def _kind(name: str) -> str:
    if "sliding" in name:
        return "window"
    if "chunked" in name:
        return "chunk"
    if "full" in name or name in ("attention", "hybrid"):
        return "full"
    return "state"
