"""What an engine's first model will take on the card, asked before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from arbiterd.engines import engine_of
from arbiterd.engines.ollama_names import is_listed
from arbiterd.model.health import LoadedModel
from arbiterd.model.settings import BackendSettings
from arbiterd.sense.http import Via, ask

# Bytes of a model, from the settings, its name, and what its engine answers about its library and about it.
Weigh: TypeAlias = Callable[[BackendSettings, str, str, str], int | None]


def weighed(
    via: Via, url: str, backend: BackendSettings, loaded: Sequence[LoadedModel], weigh: Weigh
) -> int | None:
    """Bytes by the load gate's reckoning; None while it is resident, or where the engine does not tell."""
    engine = engine_of(backend.kind)
    warm, listing = engine.warm_model(backend), engine.library_probe(backend)
    about = engine.about_probe(backend, warm) if warm else None
    if listing is None or about is None or is_listed(warm, [one.name for one in loaded]):
        return None
    listed, shown = ask(via, url, listing), ask(via, url, about)
    if listed.status != 200 or shown.status != 200:
        return None
    return weigh(backend, warm, listed.body, shown.body)
