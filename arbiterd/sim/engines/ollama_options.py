"""Options of a request as Ollama types them, and which of them make the runner start anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from arbiterd.sim.engines.go_words import Refused
from arbiterd.sim.engines.ollama_models import Blob

_INTEGERS = {
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "draft_num_predict",
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "mirostat",
}
_FLOATS = {
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
}


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """What a runner is started with (api.Runner). ``num_gpu`` -1: llama.cpp's fit decides."""

    num_ctx: int
    num_batch: int = 512
    num_gpu: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int = 0
    shift: bool = True

    def serves(self, wanted: RunnerOptions) -> bool:
        """Whether a runner of these options does for a request (sched.go, needsReload): one that
        leaves num_gpu to the engine takes what there is, and use_mmap false is the default.
        """
        has, wants = (
            replace(self, use_mmap=self.use_mmap or None),
            replace(wanted, use_mmap=wanted.use_mmap or None),
        )
        if wants.num_gpu < 0:
            has, wants = replace(has, num_gpu=-1), replace(wants, num_gpu=-1)
        return has == wants

    def argv(self, blob: Blob, port: int, parallel: int, env: Mapping[str, str]) -> list[str]:
        """llama-server's command line, without the program."""
        words = ["--model", blob.path, "--port", str(port), "--host", "127.0.0.1", "--no-webui"]
        words += ["--offline", "-c", str(self.num_ctx * parallel), "-np", str(parallel)]
        words += ["--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps"]
        if self.main_gpu:
            words += ["--split-mode", "none", "--main-gpu", str(self.main_gpu)]
        if not self.use_mmap:
            words += ["--load-mode", "none"]
        flash = {"1": "on", "true": "on", "0": "off", "false": "off"}
        words += ["--flash-attn", flash.get(env.get("OLLAMA_FLASH_ATTENTION", ""), "auto")]
        batch = str(min(self.num_batch, self.num_ctx))
        words += ["-b", batch, "-ub", batch]
        cache = env.get("OLLAMA_KV_CACHE_TYPE")
        if cache:
            words += ["--cache-type-k", cache, "--cache-type-v", cache]
        if self.num_gpu >= 0:
            words += ["-ngl", str(self.num_gpu)]
        if self.num_thread:
            words += ["-t", str(self.num_thread)]
        if blob.embedding:
            words += ["--embedding"]
        elif self.shift:
            words += ["--context-shift", "--keep", "4"]
        return words


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of the generation."""

    num_predict: int = -1
    temperature: float = 0.8
    stop: tuple[str, ...] = ()

    def most(self, num_ctx: int) -> int | None:
        """Tokens it may have: at most ten contexts; 0 has no end (llama_server.go)."""
        if self.num_predict == 0:
            return None
        cap = 10 * num_ctx
        return min(self.num_predict, cap) if self.num_predict > 0 else cap


def typed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the right type; unknown names and nulls are left out, names are case-sensitive.

    Raises:
        Refused: 500 in Ollama's words (api/types.go, FromMap).
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _INTEGERS:
            if not number:
                raise Refused(500, f'option "{name}" must be of type integer')
            found[name] = int(value)
        elif name in _FLOATS:
            if not number:
                raise Refused(500, f'option "{name}" must be of type float32')
            found[name] = float(value)
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise Refused(500, f'option "{name}" must be of type boolean')
            found[name] = value
        elif name == "stop":
            if not isinstance(value, list):
                raise Refused(500, f'option "{name}" must be of type array')
            if not all(isinstance(one, str) for one in value):
                raise Refused(500, f'option "{name}" must be of an array of strings')
            found[name] = tuple(value)
    return found


def runner_options(
    found: Mapping[str, Any], blob: Blob, default_ctx: int, *, shift: bool
) -> RunnerOptions:
    """Of typed options: num_ctx is at least 4 and at most what the model was trained with."""
    names = ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
    kept = {name: found[name] for name in names if name in found}
    context = min(max(4, int(found.get("num_ctx", default_ctx))), blob.trained_context)
    return RunnerOptions(num_ctx=context, shift=shift, **kept)


def sampling(found: Mapping[str, Any]) -> Sampling:
    """Of typed options."""
    names = ("num_predict", "temperature", "stop")
    return Sampling(**{name: found[name] for name in names if name in found})
