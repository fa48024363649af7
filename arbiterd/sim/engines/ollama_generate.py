"""What the stand-in Ollama's generate, chat, completions, messages and responses routes share: from a
decoded body to a runner and its tokens.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from arbiterd.sim.engines.go_words import Refused, keep_alive
from arbiterd.sim.engines.ollama_models import Model
from arbiterd.sim.engines.ollama_options import Sampling, runner_options, sampling, typed
from arbiterd.sim.engines.ollama_runner import Runner, RunnerDied
from arbiterd.sim.engines.ollama_scheduler import Scheduler

_TEMPLATE_TOKENS = 18
_REPEAT_LIMIT = 30
_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal "
    "error, check ollama server logs for details"
)
_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for tokens. ``model``: the name as asked; ``prompt`` "": load only; ``keep``: the
    body's keep_alive, None for none.
    """

    model: str
    prompt: str
    chat: bool
    options: Mapping[str, Any]
    keep: Any = None
    shift: bool | None = None
    truncate: bool = True
    raw: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. ``done``: "" before the end, else length, stop or load; an ask may end
    without one, after thirty times the same token.
    """

    text: str = ""
    done: str = ""
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(slots=True)
class Counts:
    """For durations and counts; ``prompt``: tokens of it."""

    began: float
    prompt: int
    tokens: int = 0
    loaded: float = 0.0


def model_for(scheduler: Scheduler, ask: Ask) -> Model:
    """The model of a request that wants tokens.

    Raises:
        Refused: unknown, or an embedding model.
    """
    scheduler.library.edited = str(scheduler.faults.get("parameters", ""))
    model = scheduler.library.find(ask.model)
    if model is None:
        raise Refused(404, f"model '{ask.model}' not found")
    if model.blob.embedding or model.blob.missing:
        raise Refused(400, f'"{ask.model}" does not support {"chat" if ask.chat else "generate"}')
    return model


def check_abilities(body: Mapping[str, Any], model: Model) -> None:
    """What these models cannot do, asked on any route; before a load.

    Raises:
        Refused: they have tools and insertion of no kind.
    """
    if body.get("suffix"):
        raise Refused(400, f"{model.name.full} does not support insert")
    if body.get("tools"):
        raise Refused(400, f"{model.name.full} does not support tools")


def prompt_tokens(ask: Ask) -> int:
    """A word is a token here."""
    return len(ask.prompt.split()) + (0 if ask.raw else _TEMPLATE_TOKENS)


async def parts(
    scheduler: Scheduler, ask: Ask, model: Model, counts: Counts
) -> AsyncIterator[Part]:
    """Load and generate.

    Raises:
        Refused: in Ollama's words, also in the middle.
    """
    found = typed({**scheduler.library.parameters(model), **ask.options})
    keep_s = None if ask.keep is None else keep_alive(ask.keep)
    options = runner_options(
        found, model.blob, scheduler.default_context, shift=ask.shift is not False
    )
    async with scheduler.using(model, options, keep_s) as runner:
        counts.loaded = time.time()
        if not ask.prompt:
            yield Part(done="load")
            return
        _check_length(ask, counts, options.num_ctx)
        async for part in _generated(runner, ask, sampling(found), counts):
            yield part


def _check_length(ask: Ask, counts: Counts, context: int) -> None:
    """A generate is cut to fit, unless it says not to; a chat of one message cannot be cut."""
    if counts.prompt <= context or (not ask.chat and ask.truncate and ask.shift is not False):
        return
    if not ask.chat and ask.shift is False:
        raise Refused(400, _TOO_LONG)
    text = f"request ({counts.prompt} tokens) exceeds the available context size ({context} tokens), try increasing it"
    error = {
        "code": 400,
        "message": text,
        "type": "exceed_context_size_error",
        "n_prompt_tokens": counts.prompt,
        "n_ctx": context,
    }
    raise Refused(400, json.dumps({"error": error}, separators=(",", ":")))


async def _generated(
    runner: Runner, ask: Ask, wanted: Sampling, counts: Counts
) -> AsyncIterator[Part]:
    blob = runner.model.blob
    most = wanted.most(runner.options.num_ctx)
    natural = blob.natural if wanted.num_predict < 0 else None
    ends_itself = natural is not None and (most is None or natural < most)
    style = "words"
    if blob.repeats:
        style = "letters" if wanted.temperature else "repeats"
    last, same = "", 0
    tokens = runner.tokens(natural if ends_itself else most, style)
    try:
        async for token in tokens:
            counts.tokens += 1
            same = same + 1 if token == last else 0
            last = token
            if same > _REPEAT_LIMIT:
                return
            cut = min((at for one in wanted.stop if (at := token.find(one)) >= 0), default=-1)
            if cut >= 0:
                if token[:cut]:
                    yield Part(token[:cut])
                yield Part(done="stop")
                return
            yield Part(token, logprobs=(_logprob(token),) if ask.logprobs else ())
        yield Part(done="stop" if ends_itself else "length")
    except RunnerDied as died:
        text = f"an error was encountered while running the model: {runner.died_of()}"
        raise Refused(500, text if died.began else _STOPPED) from None
    finally:
        await tokens.aclose()  # type: ignore[attr-defined]


def _logprob(token: str) -> dict[str, Any]:
    one = {"token": token, "logprob": -1.5, "bytes": [*token.encode()]}
    return {**one, "top_logprobs": [one]}


async def whole(scheduler: Scheduler, ask: Ask, model: Model, counts: Counts) -> Part:
    """All of it."""
    text, done = "", ""
    said: list[Mapping[str, Any]] = []
    try:
        async for part in parts(scheduler, ask, model, counts):
            text, done = text + part.text, part.done
            said += part.logprobs
    except asyncio.CancelledError:
        if not counts.loaded:
            raise
        raise Refused(500, "context canceled") from None  # nobody reads it; the access line has it
    return Part(text, done, tuple(said))
