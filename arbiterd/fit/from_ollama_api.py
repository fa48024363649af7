"""A model's shape from what Ollama tells of it. The arithmetic is fit/ollama.py's, for the load gate as
for ``arbiterctl check``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arbiterd.engines.base import UNREADABLE
from arbiterd.engines.ollama_names import is_listed
from arbiterd.files import strict_json
from arbiterd.fit.kv_cache import MAX_CONTEXT, gguf_layers
from arbiterd.fit.ollama import UNKNOWN_SHAPE, Shape, predicted_bytes
from arbiterd.model.settings import BackendSettings

__all__ = ["Shape", "predicted_bytes", "shape_of", "weigh"]


def weigh(backend: BackendSettings, model: str, listed: str, shown: str) -> int | None:
    """Bytes that a model takes on the card with this backend's context. ``listed``, ``shown``: bodies of
    /api/tags and /api/show; None where they do not tell.
    """
    try:
        rows, show = strict_json.loads(listed)["models"], strict_json.loads(shown)
        mine = (row for row in rows if is_listed(str(row["name"]), (model,)))
        size = next((int(row["size"]) for row in mine), 0)
    except UNREADABLE:
        return None
    if size <= 0 or not isinstance(show, Mapping):
        return None
    own = backend.ollama
    return predicted_bytes(shape_of(size, show), own.context_length, own.parallel)


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
