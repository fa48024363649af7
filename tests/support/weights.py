"""Files of models as the engines' makers publish them, their data left as holes: sizes are real, the
disk is not filled.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1, "I32": 4}
Tensors = Mapping[str, tuple[str, list[int]]]

QWEN_3B: dict[str, Any] = {  # Qwen/Qwen2.5-3B-Instruct
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3B_VALUES = 3_085_938_688
LLAMA_8B: dict[str, Any] = {  # meta-llama/Llama-3.1-8B-Instruct
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_8B_VALUES = 8_030_261_248
DEEPSEEK_LITE: dict[str, Any] = {  # deepseek-ai/DeepSeek-V2-Lite: multi-head latent attention
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": {"factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"},
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
GEMMA_4B: dict[str, Any] = {  # google/gemma-3-4b-it: nested, five windowed layers, then a full one
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152},
    "text_config": {
        "head_dim": 256,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_hidden_layers": 34,
        "num_key_value_heads": 4,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
    },
}


def safetensors(path: Path, tensors: Tensors, *, data: int | None = None) -> None:
    """A file with this header; ``data``: bytes after it, as many as promised by default."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTH[dtype]
        for dimension in shape:
            size *= dimension
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + (at if data is None else data))


def hub_model(
    cache: Path, repository: str, config: Mapping[str, Any], values: int, *, shards: int = 2
) -> Path:
    """models--ORG--NAME as huggingface_hub keeps it, bf16 weights in shards; returns the snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(repository.encode()).hexdigest()
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps(config))
    weight_map, each = {}, values // shards
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        count = each if number else values - each * (shards - 1)
        safetensors(snapshot / name, {f"layer.{number}": ("BF16", [count])})
        weight_map[f"layer.{number}"] = name
    index = {"metadata": {"total_size": 2 * values}, "weight_map": weight_map}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    return snapshot


def gguf_bytes(metadata: Mapping[str, Any], version: int = 3) -> bytes:
    """The header of a GGUF file: whole numbers as uint32, lists as arrays."""

    def text(one: str) -> bytes:
        data = one.encode()
        return struct.pack("<Q", len(data)) + data

    def value(one: Any) -> bytes:
        if isinstance(one, bool):
            return struct.pack("<I?", 7, one)
        if isinstance(one, int):
            return struct.pack("<II", 4, one)
        if isinstance(one, float):
            return struct.pack("<If", 6, one)
        if isinstance(one, str):
            return struct.pack("<I", 8) + text(one)
        kind = {bool: 7, int: 5, str: 8}[type(one[0])]
        form = {7: "?", 5: "i"}.get(kind)
        body = b"".join(text(x) if form is None else struct.pack(f"<{form}", x) for x in one)
        return struct.pack("<IIQ", 9, kind, len(one)) + body

    out = b"GGUF" + struct.pack("<IQQ", version, 0, len(metadata))
    for key, one in metadata.items():
        out += text(key) + value(one)
    return out


QWEN_3B_GGUF: dict[str, Any] = {  # of ollama's qwen2.5:3b
    "general.architecture": "qwen2",
    "qwen2.block_count": 36,
    "qwen2.context_length": 32768,
    "qwen2.embedding_length": 2048,
    "qwen2.attention.head_count": 16,
    "qwen2.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"] * 5000,
    "tokenizer.ggml.token_type": [1] * 15000,
}


def ollama_model(
    store: Path, name: str, metadata: Mapping[str, Any], size: int, **params: Any
) -> Path:
    """A pulled model: manifest and blobs; returns the model's blob."""
    model, _, tag = name.partition(":")
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    blob = _blob(store, gguf_bytes(metadata), size)
    layers = [{"mediaType": "application/vnd.ollama.image.model", **blob}]
    if params:
        given = {
            "mediaType": "application/vnd.ollama.image.params",
            **_blob(store, json.dumps(params).encode()),
        }
        layers.append(given)
    config = _blob(store, b"{}")
    path = store / "manifests" / "registry.ollama.ai" / "library" / model / (tag or "latest")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}))
    return store / "blobs" / str(blob["digest"]).replace(":", "-")


def _blob(store: Path, data: bytes, size: int | None = None) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    whole = max(len(data), size or 0)
    with (store / "blobs" / f"sha256-{digest}").open("wb") as file:
        file.write(data)
        file.truncate(whole)
    return {"digest": f"sha256:{digest}", "size": whole}


def saved_model(path: Path, variables: int, *versions: int) -> None:
    """PATH/VERSION/saved_model.pb and variables, the first of ``versions`` of this size."""
    for version in versions:
        inside = path / str(version) / "variables"
        inside.mkdir(parents=True)
        (path / str(version) / "saved_model.pb").write_bytes(b"\x08\x01")
        with (inside / "variables.data-00000-of-00001").open("wb") as file:
            file.truncate(variables if version == versions[0] else 1)
        (inside / "variables.index").write_bytes(b"x")
