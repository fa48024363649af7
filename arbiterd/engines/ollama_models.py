"""What /api/show tells of a model, as far as it decides on its runner. Pure.

Ollama starts a runner anew when a request comes with other runner options, another context shift or
other adapters than it was started with (needsReload in ollama server/sched.go). Routes below /v1
take no options, there the Modelfile decides: so its values are what every other route gets, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arbiterd.engines.ollama_names import key

# api.Runner in ollama api/types.go: another value starts the runner anew
ANEW = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
)
BY_FIT = -1  # num_gpu: as many layers as fit
CAP_CONTEXTS = 10  # openEndedGenerationContextMultiplier in ollama llm/llama_server.go
_MIN_CONTEXT = 4
_VISION_CONTEXT = 2048  # a model with vision gets at least this (getRunner in server/sched.go)
_PARAMETER = re.compile(r"^(\S+)\s+(.+?)\s*$", re.MULTILINE)
_PART = re.compile(r"^(FROM|ADAPTER)\s+(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class About:
    """``modelfile_ctx``: its own num_ctx, 0 for none; ``num_gpu``: its own, else BY_FIT.
    ``endless``: its num_predict is 0, which no cap ends. ``trained``: tokens of context that it was
    trained for, 0 when unknown. ``embeds``: an embedding model, which generates nothing.
    ``weights``: the file that its runner reads, "" when not told; ``rest``: its other runner options
    and adapters. ``can``: its capabilities, () when not told.
    """

    modelfile_ctx: int = 0
    num_gpu: int = BY_FIT
    endless: bool = False
    trained: int = 0
    embeds: bool = False
    vision: bool = False
    weights: str = ""
    rest: tuple[tuple[str, str], ...] = ()
    can: tuple[str, ...] = ()

    def num_ctx(self, context_length: int) -> int:
        """The context that every route gets: the Modelfile's when it is smaller than ours."""
        return min(self.modelfile_ctx or context_length, context_length)

    def context(self, context_length: int) -> int:
        """Tokens of context that its runner has: no more than it was trained for."""
        asked = max(_MIN_CONTEXT, self.num_ctx(context_length))
        if self.vision:
            asked = max(asked, _VISION_CONTEXT)
        return min(asked, self.trained) if self.trained else asked

    def options(self, context_length: int) -> dict[str, int]:
        """The runner options to write; all others are left to its Modelfile, as below /v1."""
        return {"num_ctx": self.num_ctx(context_length), "num_gpu": self.num_gpu}

    @property
    def runner(self) -> str:
        """Equal for all models that share a runner and never start it anew; "" when not known."""
        own = (self.weights, self.modelfile_ctx, self.num_gpu, self.rest)
        return repr(own) if self.weights else ""

    @property
    def load_path(self) -> str:
        """The route that loads it: an embedding model answers 400 to /api/generate."""
        return "/api/embed" if self.embeds else "/api/generate"

    def load_body(self, model: str, context_length: int, keep_alive: int | str) -> dict[str, Any]:
        """A request for ``load_path`` that loads it and asks nothing."""
        asked: dict[str, Any] = {"input": []} if self.embeds else {"stream": False}
        options = self.options(context_length)
        return {"model": model, "keep_alive": keep_alive, "options": options, **asked}


def about(show: Mapping[str, Any]) -> About:
    """From /api/show; whatever it does not tell stays at its default."""
    own: dict[str, str] = dict(_PARAMETER.findall(str(show.get("parameters") or "")))
    parts = _PART.findall(str(show.get("modelfile") or ""))
    capabilities = show.get("capabilities")
    can = tuple(capabilities) if isinstance(capabilities, list | tuple) else ()
    gpu = _whole(own.get("num_gpu"))
    rest = [
        (name, own[name]) for name in ANEW if name in own and name not in ("num_ctx", "num_gpu")
    ]
    return About(
        modelfile_ctx=max(0, _whole(own.get("num_ctx")) or 0),
        num_gpu=BY_FIT if gpu is None or gpu < 0 else gpu,
        endless=_whole(own.get("num_predict")) == 0,
        trained=_trained(show.get("model_info")),
        embeds=bool(can) and "completion" not in can,
        vision="vision" in can,
        weights=next((path for word, path in parts if word == "FROM"), ""),
        rest=tuple(rest + parts[1:]),
        can=tuple(str(one) for one in can),
    )


def runner_of(name: str, digest: str, found: About) -> str:
    """What models have in common that share a runner: the file of their weights."""
    return found.weights or digest or key(name)


def cap_tokens(num_ctx: int) -> int:
    """Tokens at which Ollama ends a generation without an end of its own."""
    return CAP_CONTEXTS * num_ctx


def _whole(text: str | None) -> int | None:
    """A number of a Modelfile ('512', '1e+06'), None when it is none."""
    try:
        return None if text is None else int(float(text.strip('"')))
    except (ValueError, OverflowError):
        return None


def _trained(info: object) -> int:
    if not isinstance(info, Mapping):
        return 0
    found = info.get(f"{info.get('general.architecture')}.context_length")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0
