"""The stand-in Ollama's models: names as Ollama reads them, blobs that names share, Modelfiles.

``GPU_SIM_MODELS`` names a JSON file with other models than the built-in ones: {name: fields of Blob,
and ``parameters``, ``blob`` (a name whose file it shares), ``parent``}.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from arbiterd.sim.engines.go_words import Refused

MODELS_ENV = "GPU_SIM_MODELS"
_HOST, _SPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")


@dataclass(frozen=True, slots=True)
class Name:
    """A model's name; letters of any case are the same name."""

    host: str
    space: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """As types/model/name.go.

        Raises:
            Refused: 400 invalid model name.
        """
        words = re.sub(r"^[a-z]+://", "", text.strip()).split("/")
        model, colon, tag = words[-1].partition(":")
        space = words[-2] if len(words) > 1 else _SPACE
        host = words[-3] if len(words) > 2 else _HOST
        good = len(words) <= 3 and _PART.match(model) and _NAMESPACE.match(space) and host
        if not good or (colon and not _PART.match(tag)):
            raise Refused(400, "invalid model name")
        return cls(host, space, model, tag or _TAG)

    @property
    def key(self) -> str:
        """Equal for equal names."""
        return self.full.lower()

    @property
    def full(self) -> str:
        """With host and namespace."""
        return f"{self.host}/{self.space}/{self.model}:{self.tag}"

    def __str__(self) -> str:
        host = "" if self.host == _HOST else f"{self.host}/"
        space = "" if self.space == _SPACE and not host else f"{self.space}/"
        return f"{host}{space}{self.model}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Blob:
    """A model's file. Sizes in bytes. ``natural``: tokens after which it ends by itself, None:
    never; ``repeats``: at temperature 0 it says the same for ever.
    """

    seed: str
    weights: int
    kv_per_token: int
    layers: int = 36
    trained_context: int = 32768
    embedding: int = 0
    width: int = 2048
    natural: int | None = 16
    repeats: bool = False
    template: str = "{{ .Prompt }}"
    family: str = "llama"
    parameter_size: str = "3.1B"
    quantization: str = "Q4_K_M"
    shown_quantization: str = "Q4_K_M"
    info: Mapping[str, Any] = field(default_factory=dict)
    verbose: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[Mapping[str, Any], ...] = ()
    broken: str = ""
    missing: bool = False

    @property
    def digest(self) -> str:
        """SHA-256, hex."""
        return hashlib.sha256(self.seed.encode()).hexdigest()

    @property
    def path(self) -> str:
        """Where the real one would keep it."""
        return f"{models_folder()}/blobs/sha256-{self.digest}"

    def model_info(self, *, verbose: bool) -> dict[str, Any]:
        """The GGUF's header; shaped so that the KV cache comes to ``kv_per_token``."""
        if self.info:
            return {**self.info, **(self.verbose if verbose else {})}
        shape: dict[str, Any] = {
            "general.architecture": self.family,
            f"{self.family}.block_count": self.layers,
            f"{self.family}.context_length": self.trained_context,
            f"{self.family}.embedding_length": self.embedding or self.width,
            f"{self.family}.attention.head_count": 2,
            f"{self.family}.attention.head_count_kv": 2,
            f"{self.family}.attention.key_length": 128,
            f"{self.family}.attention.value_length": 128,
        }
        return shape | ({f"{self.family}.pooling_type": 1} if self.embedding else {})


@dataclass(slots=True)
class Model:
    """A name with what its Modelfile says."""

    name: Name
    blob: Blob
    parameters: dict[str, Any] = field(default_factory=dict)
    parent: str = ""
    modified: float = field(default_factory=time.time)

    @property
    def kinds(self) -> list[str]:
        """Capabilities."""
        return ["embedding"] if self.blob.embedding else ["completion"]

    @property
    def digest(self) -> str:
        """Of its manifest."""
        about = json.dumps([self.blob.seed, self.parameters], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def details(self, *, listed: bool) -> dict[str, Any]:
        """As /api/tags (listed), /api/ps and /api/show have them."""
        blob = self.blob
        made: dict[str, Any] = {
            "parent_model": self.parent if listed else "",
            "format": "gguf",
            "family": blob.family,
            "families": [blob.family],
            "parameter_size": blob.parameter_size,
            "quantization_level": blob.quantization
            if listed and not blob.missing
            else blob.shown_quantization,
        }
        if listed and not blob.missing:
            made["context_length"] = blob.trained_context
            made["embedding_length"] = blob.embedding or blob.width
        return made

    def parameter_lines(self) -> str:
        """As /api/show has them."""
        rows: list[tuple[str, Any]] = []
        for key, value in self.parameters.items():
            rows += [(key, one) for one in (value if isinstance(value, list) else [value])]
        return "\n".join(f"{key:<30} {_shown(value)}" for key, value in rows)

    def modelfile(self) -> str:
        """As /api/show has it."""
        lines = [
            '# Modelfile generated by "ollama show"',
            "# To build a new Modelfile based on this, replace FROM with:",
            f"# FROM {self.name}\n",
            f"FROM {self.blob.path}",
            "TEMPLATE {{ .Prompt }}",
            *(f"PARAMETER {key} {_shown(value)}" for key, value in self.parameters.items()),
        ]
        return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str | bool) else str(value)


def models_folder() -> str:
    """OLLAMA_MODELS, or its default."""
    return os.environ.get("OLLAMA_MODELS") or f"{os.environ.get('HOME', '')}/.ollama/models"


BUILT_IN: dict[str, Blob] = {
    "qwen2.5:3b": Blob("qwen2.5:3b", 1_929_912_432, 36 * 1024, layers=36),
    "qwen2.5:7b": Blob("qwen2.5:7b", 4_683_087_332, 56 * 1024, layers=56, parameter_size="7.6B"),
    "llama3.2:1b": Blob("llama3.2:1b", 1_321_098_329, 32 * 1024, layers=32, parameter_size="1.2B"),
    "llama3.1:8b": Blob(
        "llama3.1:8b", 4_920_753_328, 128 * 1024, layers=128, parameter_size="8.0B"
    ),
    "nomic-embed-text": Blob(
        "nomic-embed-text",
        274_290_656,
        12 * 1024,
        layers=12,
        trained_context=2048,
        embedding=768,
        parameter_size="137M",
        quantization="F16",
        shown_quantization="F16",
    ),
}


class Library:
    """All names."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self.edited = ""  # Modelfile lines that a fault sets for every model
        path = os.environ.get(MODELS_ENV)
        if path is None:
            for name, blob in BUILT_IN.items():
                self._put(Model(Name.parse(name), blob))
            return
        known = {one.name for one in fields(Blob)}
        given: dict[str, dict[str, Any]] = json.loads(Path(path).read_text())
        for text, about in given.items():
            source = {**given[about["blob"]], **about} if "blob" in about else about
            kept = {key: value for key, value in source.items() if key in known}
            blob = Blob(**{"seed": about.get("blob", text), **kept})
            rest = (about.get("parameters", {}), about.get("parent", ""))
            self._put(Model(Name.parse(text), blob, *rest))

    def _put(self, model: Model) -> None:
        self._models[model.name.key] = model

    def __iter__(self) -> Iterator[Model]:
        """The newest first."""
        return iter(sorted(self._models.values(), key=lambda one: -one.modified))

    def find(self, text: str) -> Model | None:
        """The model of a name in any spelling, None for an unknown one.

        Raises:
            Refused: not a name at all; a cloud model.
        """
        if not text:
            return None
        name = Name.parse(text)
        if name.tag.lower() == "cloud" or name.tag.lower().endswith("-cloud"):
            raise Refused(403, "ollama cloud is disabled: remote model is unavailable")
        return self._models.get(name.key)

    def copy(self, source: Model, target: str, parameters: Mapping[str, Any] | None = None) -> None:
        """A name for the same blob; with parameters of its own when it is made by /api/create."""
        name, parent = Name.parse(target), source.parent if parameters is None else str(source.name)
        made = {**source.parameters, **(parameters or {})}
        self._put(Model(name, source.blob, made, parent))

    def remove(self, text: str) -> bool:
        """Forget a name; whether it was there."""
        return self._models.pop(Name.parse(text).key, None) is not None

    def parameters(self, model: Model) -> dict[str, Any]:
        """What its Modelfile sets."""
        return {**model.parameters, **_parsed(self.edited)}


def _parsed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value.strip()
    return found
