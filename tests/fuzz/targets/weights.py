"""Headers of models, which anybody may have published."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from arbiterd.fit.files import saved_model
from arbiterd.fit.files.gguf import read_metadata
from arbiterd.fit.files.huggingface import INDEX, Wanted, read_folder
from arbiterd.fit.files.ollama_store import read_model
from arbiterd.fit.files.read import Unreadable
from arbiterd.fit.files.safetensors import read_header
from tests.fuzz import shapes
from tests.fuzz.files import file, folder
from tests.fuzz.target import Target
from tests.support.weights import (
    DEEPSEEK_LITE,
    GEMMA_4B,
    LLAMA_8B,
    QWEN_3B,
    QWEN_3B_GGUF,
    gguf_bytes,
)

GGUF = gguf_bytes(QWEN_3B_GGUF)
TENSORS = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
           "__metadata__": {"format": "pt"}}  # fmt: skip
MANIFEST = {
    "schemaVersion": 2,
    "config": {"digest": "sha256:" + "0" * 64, "size": 10},
    "layers": [
        {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": "sha256:" + "1" * 64,
            "size": len(GGUF),
        }
    ],
}
SHARDS = {
    "metadata": {"total_size": 10},
    "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"},
}


def _header(value: Any) -> bytes:
    text = value if isinstance(value, bytes) else shapes.write(value)
    return struct.pack("<Q", len(text)) + text + bytes(10)


def read_gguf(data: bytes) -> None:
    """A GGUF file."""
    found, size = read_metadata(file("gguf", "m.gguf", data))
    assert size == len(data)
    assert all(isinstance(key, str) for key in found)


def read_safetensors(data: bytes) -> None:
    """A safetensors file: no more bytes than it has."""
    found = read_header(file("safetensors", "m.safetensors", data))
    assert 0 <= found.data_bytes <= len(data)
    assert found.float_values >= 0


def read_hf(data: bytes) -> None:
    """config.json beside a good file of weights: whatever it says, figures that can be added up."""
    home = folder("hf")
    file("hf", "model.safetensors", _header(TENSORS))
    file("hf", "config.json", data)
    _facts(read_folder(home, Wanted("m")))


def read_index(data: bytes) -> None:
    """The index of shards: never a file outside of its folder."""
    home = folder("index")
    file("index", "model-1.safetensors", _header(TENSORS))
    file("index", "config.json", json.dumps(QWEN_3B).encode())
    file("index", INDEX, data)
    _facts(read_folder(home, Wanted("m")))


def _facts(found: Any) -> None:
    for name in ("weight_bytes", "context", "vocab", "hidden", "intermediate", "stateful_layers"):
        value = getattr(found, name)
        assert isinstance(value, int), (name, value)
        assert 0 <= value < 1 << 62, (name, value)
    assert 0 < found.dtype_bytes <= 16
    for row in found.layers:
        assert row.count >= 0


def read_manifest(data: bytes) -> None:
    """A manifest in Ollama's store, and its blobs."""
    home = folder("ollama")
    blobs = home / "blobs"
    blobs.mkdir(exist_ok=True)
    (blobs / ("sha256-" + "1" * 64)).write_bytes(GGUF)
    at = home / "manifests" / "registry.ollama.ai" / "library" / "qwen2.5"
    at.mkdir(parents=True, exist_ok=True)
    (at / "3b").write_bytes(data)
    assert read_model(home, "qwen2.5:3b").weight_bytes >= 0


def read_saved_model(data: bytes) -> None:
    """Names in a SavedModel's folder: each line one file or folder."""
    home = folder("saved")
    with _made(home, data.decode("utf-8", "replace").split("\n")):
        found = saved_model.read_model("m", home)
        assert found.weight_bytes >= 0


class _made:  # noqa: N801 - used as a function
    """The names as files of three bytes, gone afterwards."""

    def __init__(self, home: Path, names: list[str]) -> None:
        self._paths = [
            home / n
            for n in names[:6]
            if n and len(n) < 60 and ".." not in n and n[0] != "/" and "\0" not in n
        ]

    def __enter__(self) -> None:
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"abc")
            except OSError:
                continue

    def __exit__(self, *_: object) -> None:
        import shutil

        home = folder("saved")
        for one in home.iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()


_pairs = st.lists(
    st.tuples(st.sampled_from((b"general.architecture", b"llama.context_length", b"x")), st.integers(0, 14), st.binary(max_size=24)),
    max_size=4,
).map(
    lambda rows: b"GGUF" + struct.pack("<IQQ", 3, 1, len(rows))
    + b"".join(struct.pack("<Q", len(k)) + k + struct.pack("<I", kind) + v for k, kind, v in rows)
)  # fmt: skip


def _target(
    name: str,
    read: Callable[[bytes], None],
    strategy: st.SearchStrategy[bytes],
    *seeds: bytes,
    coverage: bool = True,
) -> Target:
    return Target(name, read, strategy, (Unreadable,), seeds, coverage)


TARGETS = (
    _target("GGUF header", read_gguf, st.one_of(shapes.edited((GGUF,)), _pairs), GGUF),
    _target("safetensors header", read_safetensors, st.one_of(
        shapes.damaged((TENSORS,)).map(_header), shapes.edited((_header(TENSORS),))), _header(TENSORS)),
    _target("config.json", read_hf, shapes.documents(QWEN_3B, LLAMA_8B, DEEPSEEK_LITE, GEMMA_4B), json.dumps(GEMMA_4B).encode(), json.dumps(QWEN_3B).encode()),
    _target("safetensors index", read_index, shapes.documents(SHARDS), shapes.write(SHARDS)),
    _target("Ollama manifest", read_manifest, shapes.documents(MANIFEST), shapes.write(MANIFEST)),
    _target("SavedModel folder", read_saved_model, shapes.texts("1/saved_model.pb\n1/variables/variables.data-0\n2/x", "²/saved_model.pb", "0001/saved_model.pb")),
)  # fmt: skip
