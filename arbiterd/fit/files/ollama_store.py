"""Ollama's models on this disk: manifests name layers, blobs hold them (server/manifest.go)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arbiterd.engines import ollama_names
from arbiterd.fit.files.gguf import read_metadata
from arbiterd.fit.files.huggingface import NotHere
from arbiterd.fit.files.read import Unreadable, read_json, size_of
from arbiterd.fit.kv_cache import MAX_CONTEXT, gguf_layers
from arbiterd.fit.types import ModelFacts
from arbiterd.quantities import format_size

MANIFEST_MAX = 1024**2
LAYERS_MAX = 20_000  # a model in safetensors has one per tensor
_MODEL = "application/vnd.ollama.image.model"
_PARAMS = "application/vnd.ollama.image.params"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_BYTES_MAX = 1 << 50


def store_of(env: Mapping[str, str], home: Path) -> Path:
    """OLLAMA_MODELS, else ``~/.ollama/models`` of the engine's user."""
    return Path(env["OLLAMA_MODELS"]) if env.get("OLLAMA_MODELS") else home / ".ollama" / "models"


def manifest_path(store: Path, name: str) -> Path:
    """The path of a model's manifest, by any spelling of its name that Ollama takes.

    Raises:
        Unreadable: no name of a model.

    """
    found = ollama_names.parse(name)
    if found is None:
        raise Unreadable(f"{name!r} is not a model name that Ollama takes")
    path = store / "manifests"
    for part in (found.host, found.namespace, found.model, found.tag):
        path /= _as_written(path, part)
    return path


def _as_written(folder: Path, part: str) -> str:
    """The part in the letter case that the disk has: Ollama finds a model in any."""
    try:
        here = {one.lower(): one for one in os.listdir(folder)}
    except OSError:
        return part
    return here.get(part.lower(), part)


def read_model(store: Path, name: str) -> ModelFacts:
    """Its size as /api/tags tells it (every layer), its shape by the GGUF header.

    Raises:
        NotHere: it was not pulled.
        Unreadable: the store is broken or may not be read.

    """
    path = manifest_path(store, name)
    try:
        if not path.exists():
            raise NotHere(f"it is not in {store} yet")
    except OSError as error:
        raise Unreadable(f"{store} cannot be read: {error.strerror}") from None
    manifest = read_json(path, MANIFEST_MAX)
    rows = manifest.get("layers")
    if not isinstance(rows, list) or not rows or len(rows) > LAYERS_MAX:
        raise Unreadable(f"{path} has no layers")
    layers = [_row(one, path) for one in rows]
    config = manifest.get("config")
    total = sum(size for _, _, size in layers)
    total += _row(config, path)[2] if isinstance(config, dict) else 0
    for _, blob, size in layers:
        if not os.path.exists(store / "blobs" / blob):
            raise NotHere(f"{store}/blobs/{blob} is missing")
        have = size_of(store / "blobs" / blob)
        if have != size:
            raise Unreadable(f"{store}/blobs/{blob} has {have} bytes, its manifest says {size}")
    model = next((blob for kind, blob, _ in layers if kind == _MODEL), "")
    info: dict[str, Any] = read_metadata(store / "blobs" / model)[0] if model else {}
    arch = str(info.get("general.architecture", ""))
    context = info.get(f"{arch}.context_length")
    sane = isinstance(context, int) and 0 < context <= MAX_CONTEXT
    return ModelFacts(
        name=name,
        weight_bytes=total,
        weights_text=f"{len(layers)} layer(s) of {format_size(total)}",
        layers=gguf_layers(info),
        context=context if sane and isinstance(context, int) else 0,
        embeds=f"{arch}.pooling_type" in info,  # as server/images.go decides it
        notes=_num_ctx(store, layers),
    )


def _row(one: Any, path: Path) -> tuple[str, str, int]:
    """(media type, blob's name, size) of a manifest's entry."""
    if not isinstance(one, dict):
        raise Unreadable(f"{path} has a layer that is no object")
    digest, size = _DIGEST.fullmatch(str(one.get("digest"))), one.get("size")
    if digest is None:
        raise Unreadable(f"{path} has a layer without a sha256 digest")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _BYTES_MAX:
        raise Unreadable(f"{path} has a layer of {str(size)[:40]} bytes")
    return str(one.get("mediaType")), f"sha256-{digest[1]}", size


def _num_ctx(store: Path, layers: list[tuple[str, str, int]]) -> tuple[str, ...]:
    """A Modelfile's own context, which only routes below /v1 would use."""
    blob = next((blob for kind, blob, _ in layers if kind == _PARAMS), "")
    asked = read_json(store / "blobs" / blob, MANIFEST_MAX).get("num_ctx") if blob else None
    if isinstance(asked, int) and not isinstance(asked, bool) and 0 < asked <= MAX_CONTEXT:
        return (f"its Modelfile asks for num_ctx {asked}; context_length is what holds",)
    return ()
