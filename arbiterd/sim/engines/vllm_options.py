"""The stand-in vLLM's command line, read as the real one reads it: ``serve MODEL``, flags before the
model, ``--model``, ``--config FILE.yaml``, long, short and ``=`` forms, ``_`` for ``-``, abbreviations.
What 0.32 does not know ends with a usage error and exit code 2 (vllm/utils/argparse_utils.py).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from arbiterd.engines.vllm_flags import BARE, MANY, ONE, SHORT

DEFAULT_MODEL = "Qwen/Qwen3-0.6B"
_NUMBERS = """
    api-server-count block-size cp-kv-cache-interleave-size data-parallel-rank
    data-parallel-rpc-port data-parallel-size data-parallel-size-local data-parallel-start-rank
    data-parallel-supervisor-port dbo-decode-token-threshold dbo-prefill-token-threshold
    dcp-kv-cache-interleave-size decode-context-parallel-size
    dp-supervisor-probe-failure-threshold dp-sync-interval elastic-ep-max-dp-size
    h11-max-header-count h11-max-incomplete-event-size long-prefill-token-threshold
    mamba-cache-philox-rounds master-port max-cudagraph-capture-size max-logprobs max-lora-rank
    max-loras max-num-seqs mm-shm-cache-max-object-size-mb nnodes node-rank offload-group-size
    offload-num-in-group offload-prefetch-step pipeline-parallel-size port
    prefill-context-parallel-size prefill-schedule-interval renderer-num-workers
    replayssm-buffer-len safetensors-prefetch-num-threads seed shutdown-timeout spec-tokens
    sse-keep-alive-interval ssl-cert-reqs stream-interval tensor-parallel-size ubatch-size
    """.split()  # noqa: SIM905 - fifty names read better so
_DECIMALS = """
    cpu-offload-gb dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s
    gpu-memory-utilization kv-cache-metrics-sample mm-encoder-fp8-scale-save-margin
    mm-ipc-gpu-memory-gb mm-processor-cache-gb watermark
    """.split()  # noqa: SIM905
_ALIASES = {"device-memory-utilization": "gpu-memory-utilization"}
_DEFAULTS: dict[str, Any] = {
    "port": 8000,
    "gpu-memory-utilization": 0.92,
    "shutdown-timeout": 0,
    "model": DEFAULT_MODEL,
}
_TEXT_NUMBERS = frozenset({"max-model-len", "max-num-queued-reqs"})  # texts to the real parser
_YAML_LINE = re.compile(r"([\w.-]+)\s*:\s*(.*)")


def options(argv: list[str]) -> argparse.Namespace:
    """Read the words after the program's name; ends the process on a usage error.

    Raises:
        ValueError: the real one's own, for a configuration file or a form that it refuses.
    """
    served = argv[:1] == ["serve"]
    words = _with_config(_model_first(argv) if served else list(argv), served=served)
    parser = _parser("vllm serve" if served else "api_server.py")
    found, unknown = parser.parse_known_args([_dashed(word) for word in words[served:]])
    if unknown:  # found by the program's parser, not by the sub-command's
        parser.prog = "vllm" if served else parser.prog
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    found.model = found.model_tag or found.model
    found.loras = [_lora(parser, one) for one in found.lora_modules or ()]
    return found


def _dashed(word: str) -> str:
    """``--max_model_len=8`` and ``--max-model-len=8`` are one flag."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _model_first(argv: list[str]) -> list[str]:
    """``serve --flag x --model M`` is read as ``serve M --flag x``."""
    for index, word in enumerate(argv):
        if word == "--model" and index + 1 < len(argv):
            return ["serve", argv[index + 1], *argv[1:index], *argv[index + 2 :]]
        if word.startswith("--model="):
            model = word.removeprefix("--model=")
            return ["serve", model, *argv[1:index], *argv[index + 1 :]]
    named = any(re.match(r"--served[-_]model[-_]name(=|$)", word) for word in argv)
    configured = any(re.match(r"--config(=|$)", word) for word in argv)
    if argv[1:2] and argv[1].startswith("-") and named and not configured:
        raise ValueError(
            "`model` should be provided as the first positional argument when using `vllm serve`. "
            "i.e. `vllm serve <model> --<arg> <value>`."
        )
    return argv


def _with_config(argv: list[str], *, served: bool) -> list[str]:
    """The file's flags come before the command line's, so that these win."""
    if "--config" not in argv:
        return argv
    index = argv.index("--config")
    if index + 1 == len(argv):
        raise ValueError("No config file specified! Please check your command-line arguments.")
    given = _config_words(Path(argv[index + 1]))
    rest = [*argv[:index], *argv[index + 2 :]]
    if not served:
        return [*given, *rest]
    if rest[1:2] and not rest[1].startswith("-"):
        return [*rest[:2], *given, *rest[2:]]
    if "--model" not in given:
        raise ValueError(
            "No model specified! Please specify model either as a positional argument or in a "
            "config file."
        )
    return [*rest[:1], *given, *rest[1:]]


def _config_words(path: Path) -> list[str]:
    """A flat YAML file as flags: ``key: value``, ``key: true``, ``key: [a, b]``, or a list below."""
    if path.suffix not in (".yaml", ".yml"):
        kind = path.suffix.lstrip(".")
        raise ValueError(f"Config file must be of a yaml/yml type. {kind} supplied")
    words: list[str] = []
    for raw in path.read_text().splitlines():
        line = re.sub(r"(^|\s)#.*", "", raw).rstrip()
        if item := re.fullmatch(r"\s*-\s+(.+)", line):
            words.append(_scalar(item[1]))
        elif found := _YAML_LINE.fullmatch(line):
            value = found[2].strip()
            if value == "false":
                continue
            words.append(f"--{found[1]}")
            if value.startswith("["):
                words += [_scalar(one) for one in value.strip("[]").split(",") if one.strip()]
            elif value and value != "true":
                words.append(_scalar(value))
    return words


def _scalar(text: str) -> str:
    return text.strip().strip("'\"")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, usage=f"{prog} [model_tag] [options]")
    parser.add_argument("model_tag", nargs="?")
    shorts: dict[str, list[str]] = {}
    for short, name in SHORT.items():
        shorts.setdefault(name, []).append(f"-{short}")
    for alias, name in _ALIASES.items():
        shorts.setdefault(name, []).append(f"--{alias}")
    for name in sorted((ONE | MANY) - _ALIASES.keys()):
        kind: Any = int if name in {*_NUMBERS, *_TEXT_NUMBERS} else str
        parser.add_argument(
            f"--{name}",
            *shorts.get(name, ()),
            type=float if name in _DECIMALS else kind,
            nargs="+" if name in MANY else None,
            default=_DEFAULTS.get(name),
        )
    for name in sorted(BARE - {"help"}):
        how = argparse.BooleanOptionalAction
        parser.add_argument(f"--{name}", *shorts.get(name, ()), action=how, default=False)
    return parser


def _lora(parser: argparse.ArgumentParser, text: str) -> tuple[str, str, str]:
    """(name, path, base model or ""), from ``name=path`` or a JSON object."""
    if "=" in text and not text.startswith("{"):
        name, _, path = text.partition("=")
        return name, path, ""
    try:
        found = json.loads(text)
        return str(found["name"]), str(found["path"]), str(found.get("base_model_name") or "")
    except (ValueError, KeyError, TypeError):
        parser.error(f"Invalid JSON format for --lora-modules: {text}")
