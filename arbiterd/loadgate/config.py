"""What the load gate has to know, as JSON: rendered by the daemon, read by the gate's own process."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from arbiterd.gateway.layout import is_llm, owners
from arbiterd.gateway.paths import Paths
from arbiterd.model.settings import Kind, Settings


def gate_config(settings: Settings, where: Paths, keyed: Collection[str] = ()) -> dict[str, Any]:
    """The whole file. ``keyed``: backends that demand a key of their clients."""
    active = settings.active.backends
    every = owners(settings)
    return {
        "socket": str(where.gate),
        "loads": str(where.loads),
        "live": str(where.live),
        "max_body_bytes": settings.gateway.max_body_bytes,
        "created": int(settings.source.loaded_at),
        "keyed": sorted(keyed),
        "models": {model: names[0] for model, names in every.items()},
        "several": {model: names for model, names in every.items() if len(names) > 1},
        "failover": [
            {"model": r.model, "from": r.from_backend, "to": r.to_backend, "source": r.source}
            for r in settings.failover
        ],
        "backends": {
            one.name: {
                "kind": one.kind.value,
                "inner": str(where.inner(one.name)),
                "engine": f"http://127.0.0.1:{one.engine_port}",
                "models": list(one.models),
                "aliases": [
                    {"name": r.model, "source": r.source}
                    for r in settings.failover
                    if r.to_backend == one.name and r.source
                ],
                "context_length": one.ollama.context_length,
                "parallel": one.ollama.parallel,
                "max_loaded_models": one.ollama.max_loaded_models,
                "keep_alive_s": one.ollama.keep_alive_s,
                "max_queue": one.max_queue,
                "queue_timeout_s": one.queue_timeout_s,
                "load_timeout_s": one.start_timeout_s,
                "gated": one.kind is Kind.OLLAMA,
            }
            for one in active.values()
            if is_llm(one)
        },
    }
