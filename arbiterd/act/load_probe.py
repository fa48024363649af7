"""How an engine is asked to load a model: some tell first what the model is like."""

from __future__ import annotations

from collections.abc import Callable

from arbiterd.act.engine_requests import ask
from arbiterd.engines import engine_of
from arbiterd.model.actions import LoadModel
from arbiterd.model.health import HttpProbe
from arbiterd.model.settings import Settings


class LoadProbes:
    """``settings``: those in force, asked at each load. ``hide`` takes secrets out of an engine's words."""

    def __init__(self, settings: Callable[[], Settings], hide: Callable[[str], str]) -> None:
        self._settings = settings
        self._hide = hide

    def of(self, action: LoadModel) -> HttpProbe | None:
        """The request; None for a backend that is not there any more.

        Raises:
            RequestFailed: the engine does not tell.

        """
        backend = self._settings().active.backends.get(action.backend)
        if backend is None:
            return None
        engine, what = engine_of(backend.kind), f"cannot load {action.model}"
        first = engine.about_probe(backend, action.model)
        about = ask(what, action.url, first, self._hide) if first else ""
        return engine.load_probe(
            backend, action.model, action.keep_alive_s, action.timeout_s, about
        )
