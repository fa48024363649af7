"""One file per engine kind, and the table that names them. Adding a kind: a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from arbiterd.engines.base import Engine
from arbiterd.engines.generic import GenericEngine
from arbiterd.engines.ollama import OllamaEngine
from arbiterd.engines.tensorflow_serving import TensorflowServingEngine
from arbiterd.engines.vllm import VllmEngine
from arbiterd.model.settings import Kind

ENGINES: Final[Mapping[Kind, Engine]] = {
    Kind.TENSORFLOW: TensorflowServingEngine(),
    Kind.VLLM: VllmEngine(),
    Kind.OLLAMA: OllamaEngine(),
    Kind.GENERIC: GenericEngine(),
}


def engine_of(kind: Kind) -> Engine:
    """The description of an engine kind."""
    return ENGINES[kind]
