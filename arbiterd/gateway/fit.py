"""A model's shape from what Ollama tells of it. The arithmetic is core/fit.py's, for the load gate as
for ``arbiterctl check``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arbiterd.core.fit import UNKNOWN_SHAPE, Shape, predicted_bytes
from arbiterd.core.kv_cache import gguf_layers

__all__ = ["Shape", "predicted_bytes", "shape_of"]


def shape_of(size_bytes: int, show: Mapping[str, Any]) -> Shape:
    """From /api/tags (size) and /api/show (model_info of the GGUF header)."""
    info = show.get("model_info")
    layers = gguf_layers(info) if isinstance(info, Mapping) else ()
    return Shape(size_bytes, layers or UNKNOWN_SHAPE)
