"""A vLLM command line read as vLLM's own parser reads it: model, served names, parallelism.

vllm/utils/argparse_utils.py: underscores are dashes, long options may be cut short while they are
unambiguous, the last one given counts, and ``--config FILE`` is put in before the other options.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from arbiterd.engines.vllm_flags import BARE, KNOWN, MANY, SHORT

_SNAPSHOT = re.compile(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/?$")
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")


_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._:\[\]-]+")


@dataclass(frozen=True, slots=True)
class Option:
    """One option as it stands in the command.

    ``name``: its full name without dashes. ``written``: as it was written. ``words``: the places of
    its words in the command, its values included.
    """

    name: str
    written: str
    values: tuple[str, ...]
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """``model``: where the positional model stands, None without one. ``start``: where vLLM's own
    arguments begin.
    """

    words: tuple[str, ...]
    start: int
    options: tuple[Option, ...]
    model: int | None

    def value(self, name: str) -> str | None:
        """The value of an option, the last one given; None without it."""
        values = self.values(name)
        return values[-1] if values else None

    def values(self, name: str) -> tuple[str, ...]:
        """All values of the last one given."""
        found = [one.values for one in self.options if one.name == name]
        return found[-1] if found else ()

    def has(self, name: str) -> bool:
        """Whether it is given at all."""
        return any(one.name == name for one in self.options)

    def without(self, names: frozenset[str]) -> tuple[str, ...]:
        """The command with these options and their values taken out."""
        gone = {at for one in self.options if one.name in names for at in one.words}
        return tuple(word for at, word in enumerate(self.words) if at not in gone)


def full_name(word: str) -> str:
    """'--gpu_memory_util=0.9' is gpu-memory-utilization; "" for what is no option."""
    name = word.split("=", 1)[0]
    if name.startswith("--"):
        name = name[2:].split(".", 1)[0].replace("_", "-")
        if name in KNOWN or not name:
            return name
        near = [one for one in KNOWN if one.startswith(name)]
        return near[0] if len(near) == 1 else name
    if not name.startswith("-") or name == "-" or name[1].isdigit():
        return ""
    return SHORT.get(name[1:], name[1:].replace("_", "-"))


@lru_cache(maxsize=256)
def read(words: tuple[str, ...]) -> Command:
    """Read a command line."""
    start, at_serve = _start(words)
    options: list[Option] = []
    model: int | None = None
    at = start
    while at < len(words):
        word = words[at]
        name = full_name(word)
        if not name:
            if model is None and at_serve and word != "--":
                model = at
            at += 1
            continue
        count = 0 if "=" in word else _takes(name, words[at + 1 :])
        values = (word.split("=", 1)[1],) if "=" in word else words[at + 1 : at + 1 + count]
        options.append(
            Option(name, word.split("=", 1)[0], values, tuple(range(at, at + 1 + count)))
        )
        at += 1 + count
    return Command(words, start, tuple(options), model)


def _start(words: tuple[str, ...]) -> tuple[int, bool]:
    """(where vLLM's arguments begin, whether a positional model is expected)."""
    for at, word in enumerate(words):
        before = words[at - 1].rsplit("/", 1)[-1] if at else ""
        if word == "serve" and (before == "vllm" or before == _MODULES[1]):
            return at + 1, True
        if word == _MODULES[0] or word.endswith("/api_server.py"):
            return at + 1, False
    if "serve" in words:
        return words.index("serve") + 1, True
    first = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    return first, False


def _takes(name: str, following: Sequence[str]) -> int:
    """How many of the following words are values of this option."""
    if name in BARE or (name.startswith("no-") and name[3:] in BARE):
        return 0
    most = len(following) if name in MANY else 1
    count = 0
    while count < min(most, len(following)) and not full_name(following[count]):
        if following[count] == "--":
            break
        count += 1
    return count


def spliced(words: Sequence[str], config: Sequence[str]) -> tuple[str, ...]:
    """The command as vLLM sees it with its ``--config`` read: the file's options before the others."""
    if not config:
        return tuple(words)
    command = read(tuple(words))
    at = command.start
    if command.model == at:
        at += 1
    kept = command.without(frozenset({"config"}))
    return (*kept[:at], *config, *kept[at:])


def model_of(command: Sequence[str], config: Sequence[str] = ()) -> str:
    """The model named by a vLLM command line, or by the options of its ``--config``; "" for none."""
    whole = read(spliced(command, config))
    explicit = read(tuple(command)).value("model")
    if explicit:
        return explicit
    if whole.model is not None:
        return whole.words[whole.model]
    return whole.value("model") or ""


def model_first(words: Sequence[str]) -> tuple[str, ...]:
    """The model moved to the front: vLLM refuses --served-model-name unless it stands there."""
    command = read(tuple(words))
    if command.model is None or command.model == command.start:
        return command.words
    rest = [word for at, word in enumerate(command.words) if at != command.model]
    return (*rest[: command.start], command.words[command.model], *rest[command.start :])


def short_name(model: str) -> str:
    """'Org/Name' for a path '.../models--Org--Name/snapshots/HASH', else ""."""
    found = _SNAPSHOT.search(model)
    return found[1].replace("--", "/", 1) if found else ""


def lora_names(command: Command) -> tuple[str, ...]:
    """Names of --lora-modules: NAME=PATH, or JSON with a name."""
    out = []
    for text in command.values("lora-modules"):
        found = (
            re.search(r'"name"\s*:\s*"([^"]+)"', text) if text.lstrip().startswith("{") else None
        )
        name = found[1] if found else text.partition("=")[0]
        if name and not name.startswith("{"):
            out.append(name)
    return tuple(dict.fromkeys(out))


@dataclass(frozen=True, slots=True)
class Parallel:
    """How many GPUs of this host a command asks for, by its own sizes."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def gpus(self) -> int:
        """Context and expert parallelism split the same ranks again: they do not multiply."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        """Render the sum with its factors."""
        return (
            f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data} = {self.gpus} GPUs"
        )


SIZES = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")
LOCAL, RANK = "data-parallel-size-local", "data-parallel-rank"
_MULTI_NODE = (
    "nnodes",
    "node-rank",
    "data-parallel-start-rank",
    "headless",
    "data-parallel-address",
)


def pages(words: tuple[str, ...]) -> tuple[str, ...]:
    """Origins whose pages may read what this vLLM answers (--allowed-origins, a JSON list); ``*``: any,
    its default. What is no origin is left out: it would match no page.
    """
    given = read(words).value("allowed-origins")
    if given is None:
        return ("*",)
    try:
        found = json.loads(given)
    except ValueError:
        found = [given]
    listed = found if isinstance(found, list) else [found]
    return tuple(one for one in listed if isinstance(one, str) and _ORIGIN.fullmatch(one))


def sized(command: Command) -> bool:
    """Whether the operator decides about parallelism: then we add none."""
    return any(command.has(name) for name in (*SIZES, LOCAL, RANK))


def parallel(command: Command) -> Parallel | None:
    """What it asks of this host; None where this host alone cannot tell: several nodes, ray."""
    backends = (
        command.value("distributed-executor-backend"),
        command.value("data-parallel-backend"),
    )
    if any(one in ("ray", "external_launcher") for one in backends):
        return None
    if command.has("nnodes") and command.value("nnodes") != "1":
        return None
    spread = any(command.has(name) for name in _MULTI_NODE if name != "nnodes")
    local = command.value(LOCAL)
    if spread and local is None:
        return None
    sizes = []
    for name in SIZES:
        text = command.value(name) or "1"
        if not text.isdigit() or not int(text):
            return None
        sizes.append(int(text))
    tensor, pipeline, data = sizes
    if local is not None:
        if not local.isdigit() or not int(local):
            return None  # 0: the ranks are elsewhere
        data = int(local)
    elif command.has(RANK) or command.has("data-parallel-external-lb"):
        data = 1  # each rank is a process of its own
    return Parallel(tensor, pipeline, data)
