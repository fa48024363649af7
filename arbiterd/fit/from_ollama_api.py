"""A model's shape from what Ollama tells of it. The arithmetic is fit/ollama.py's, for the load gate as
for ``arbiterctl check``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arbiterd.fit.kv_cache import MAX_CONTEXT, gguf_layers
from arbiterd.fit.ollama import UNKNOWN_SHAPE, Shape, predicted_bytes

__all__ = ["Shape", "predicted_bytes", "shape_of"]


def shape_of(size_bytes: int, show: Mapping[str, Any]) -> Shape:
    """From /api/tags (size) and /api/show (model_info of the GGUF header, capabilities)."""
    info = show.get("model_info")
    info = info if isinstance(info, Mapping) else {}
    trained = info.get(f"{info.get('general.architecture', '')}.context_length")
    sane = isinstance(trained, int) and 0 < trained <= MAX_CONTEXT
    can = show.get("capabilities")
    return Shape(
        size_bytes,
        gguf_layers(info) or UNKNOWN_SHAPE,
        int(trained) if sane and trained is not None else 0,
        embeds=isinstance(can, list) and bool(can) and "completion" not in can,
    )
