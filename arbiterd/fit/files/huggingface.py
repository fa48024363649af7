"""A model of Hugging Face on this disk: a folder, or the hub's cache
(``models--ORG--NAME/snapshots/REVISION``, huggingface_hub's file-system cache).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arbiterd.fit.files.hf_config import HfShape, dtype_width, read_config
from arbiterd.fit.files.read import Unreadable, names_in, opened, read_json, size_of, take
from arbiterd.fit.files.safetensors import NO_TENSORS, Tensors, read_header
from arbiterd.fit.types import ModelFacts
from arbiterd.quantities import format_size

INDEX = "model.safetensors.index.json"
CONFIG_MAX = 4 * 1024**2
SHARDS_MAX = 4096
_REPO = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_REVISION = re.compile(r"[\w./-]{1,200}")


class NotHere(Unreadable):
    """The model is not on this disk, or not all of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says: ``dtype`` of --dtype ('auto'), ``revision`` of --revision."""

    model: str
    dtype: str = "auto"
    revision: str = "main"


def is_repository(name: str) -> bool:
    """Whether it may be a repository's name on the hub."""
    return _REPO.fullmatch(name) is not None and ".." not in name


def hub_cache(env: Mapping[str, str], home: Path) -> Path:
    """Where huggingface_hub keeps what it downloads, for a process with this environment."""
    for key in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if env.get(key):
            return _expanded(env[key], home)
    if env.get("HF_HOME"):
        return _expanded(env["HF_HOME"], home) / "hub"
    if env.get("XDG_CACHE_HOME"):
        return _expanded(env["XDG_CACHE_HOME"], home) / "huggingface" / "hub"
    return home / ".cache" / "huggingface" / "hub"


def snapshot(cache: Path, repository: str, revision: str) -> Path:
    """The folder of a downloaded revision.

    Raises:
        NotHere: it is not in this cache.
        Unreadable: its folders may not be read.

    """
    folder = cache / f"models--{repository.replace('/', '--')}"
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise Unreadable(f"{revision!r} is no revision")
    reference = folder / "refs" / revision
    commit = revision
    try:
        if not folder.is_dir():
            raise NotHere(f"it is not in {cache} yet")
        if reference.is_file():
            with opened(reference) as (stream, size):
                commit = take(stream, min(size, 200), reference, "it").decode("utf-8", "replace")
        commit = commit.strip()
        found = folder / "snapshots" / commit
        if not _REVISION.fullmatch(commit) or ".." in commit or not found.is_dir():
            raise NotHere(f"revision {revision} is not in {folder} yet")
    except OSError as error:
        raise Unreadable(f"{folder} cannot be read: {error.strerror}") from None
    return found


def read_folder(folder: Path, wanted: Wanted) -> ModelFacts:
    """config.json and the headers of the weights.

    Raises:
        NotHere: files are missing.
        Unreadable: files are broken.

    """
    names = names_in(folder)
    if "config.json" not in names:
        raise NotHere(f"there is no config.json in {folder}")
    path = folder / "config.json"
    shape = read_config(read_json(path, CONFIG_MAX), path)
    dtype = dtype_width(wanted.dtype) or min(2, shape.config_dtype_bytes)
    weight_bytes, text, notes = _weights(folder, names, shape, dtype)
    if shape.media:
        notes = (*notes, "its image or sound encoder may take GiB more while vLLM profiles")
    return ModelFacts(
        name=wanted.model,
        weight_bytes=weight_bytes,
        weights_text=text,
        quantised=bool(shape.quantised),
        layers=shape.layers,
        stateful_layers=shape.stateful_layers,
        context=shape.context,
        vocab=shape.vocab,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        dtype_bytes=dtype,
        kv_value_bytes=shape.kv_bytes or float(dtype),
        notes=notes,
    )


def _weights(
    folder: Path, names: list[str], shape: HfShape, dtype: int
) -> tuple[int, str, tuple[str, ...]]:
    """(bytes as loaded, where from, notes)."""
    if INDEX in names:
        shards = _indexed(folder / INDEX)
    else:
        tensors = [n for n in names if n.endswith(".safetensors")]
        plain = [n for n in tensors if not n.startswith("consolidated")]
        shards = plain or tensors
    if not shards:
        return _pickled(folder, names)
    missing = [name for name in shards if not os.path.exists(folder / name)]
    if missing:
        here = len(shards) - len(missing)
        raise NotHere(f"{here} of its {len(shards)} weight files are in {folder}")
    total: Tensors = sum((read_header(folder / name) for name in shards), NO_TENSORS)
    loaded = total.data_bytes if shape.quantised else total.loaded_bytes(dtype)
    how = f"{len(shards)} safetensors file(s), "
    if shape.quantised:
        how += f"quantised ({shape.quantised})"
    elif loaded != total.data_bytes:
        how += f"{format_size(total.data_bytes)} on disk, loaded with {8 * dtype} bits"
    else:
        how += f"{8 * dtype} bits"
    return loaded, how, ()


def _indexed(path: Path) -> list[str]:
    """The shards an index names, each in the same folder."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Unreadable(f"{path} has no weight_map")
    shards = sorted({str(one) for one in weight_map.values()})
    if len(shards) > SHARDS_MAX or any("/" in one or one in ("", "..") for one in shards):
        raise Unreadable(f"{path} names files outside its folder, or too many")
    return shards


def _pickled(folder: Path, names: list[str]) -> tuple[int, str, tuple[str, ...]]:
    """PyTorch's own files cannot be looked into without running them: their sizes."""
    found = [n for n in names if n.endswith(".bin") and n.startswith(("pytorch_model", "model"))]
    found = found or [n for n in names if n.endswith((".pt", ".pth"))]
    if not found:
        raise NotHere(f"there are no weights in {folder}")
    total = sum(size_of(folder / name) for name in found)
    return total, f"{len(found)} PyTorch file(s)", ("PyTorch files: taken as large as on disk",)


def _expanded(text: str, home: Path) -> Path:
    """'~' is the engine's home, not the operator's."""
    if text == "~" or text.startswith("~/"):
        return home / text[2:]
    return Path(text)
