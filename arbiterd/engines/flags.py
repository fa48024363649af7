"""Reading and removing command line flags as the engines' own parsers accept them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arbiterd.engines.base import CommandProblem

# A variable's or flag's name whose value nobody may read: HF_TOKEN, --api-key, OPENAI_API_KEY; not
# TOKENIZERS_PARALLELISM, --tokenizer, --ssl-keyfile.
SECRET = re.compile(
    r"(?:KEYS?|TOKEN|AUTH)(?![A-Za-z])|SECRET|PASSW|PASSPHRASE|AUTHORI", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class OwnedFlag:
    """A flag the arbiter sets itself. ``instead``: which key of the configuration to write."""

    name: str
    instead: str
    takes_value: bool = True


def _canonical(word: str) -> str:
    """'--gpu_memory_utilization=0.9' and '-gpu-memory-utilization' are one flag."""
    return word.split("=", 1)[0].lstrip("-").replace("_", "-")


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word not in ("-", "--") and not word[1:2].isdigit()


def value_of(command: Sequence[str], name: str) -> str | None:
    """The value of '--name VALUE' or '--name=VALUE', the last one given; None without it."""
    found: str | None = None
    for index, word in enumerate(command):
        if not _is_flag(word) or _canonical(word) != name:
            continue
        if "=" in word:
            found = word.split("=", 1)[1]
        elif index + 1 < len(command):
            found = command[index + 1]
    return found


def given(command: Sequence[str], name: str) -> bool:
    """Whether '--name' is in the command, with or without a value."""
    return any(_is_flag(word) and _canonical(word) == name for word in command)


def without(command: Sequence[str], flags: Iterable[OwnedFlag]) -> tuple[str, ...]:
    """The command with these flags (and their values) taken out."""
    names = {flag.name: flag for flag in flags}
    out: list[str] = []
    skip = False
    for index, word in enumerate(command):
        if skip:
            skip = False
            continue
        flag = names.get(_canonical(word)) if _is_flag(word) else None
        if flag is None:
            out.append(word)
            continue
        following = command[index + 1] if index + 1 < len(command) else "-"
        skip = flag.takes_value and "=" not in word and not _is_flag(following)
    return tuple(out)


def problems(command: Sequence[str], owned: Sequence[OwnedFlag]) -> tuple[CommandProblem, ...]:
    """One problem for each flag of ours in the command; the first carries the corrected line."""
    written = {_canonical(word): word for word in reversed(command) if _is_flag(word)}
    given = [flag for flag in owned if flag.name in written]
    corrected = without(command, given)
    return tuple(
        CommandProblem(
            wrong=f"{written[flag.name].split('=', 1)[0]} is set by the arbiter",
            right=f"{flag.instead}; command = {toml_list(corrected)}",
            corrected=corrected,
        )
        for flag in given
    )


def shown(words: Sequence[str]) -> list[str]:
    """Words for people: the values of secret flags and variables are "..."."""
    out: list[str] = []
    hide = False
    for word in words:
        name, given, _ = word.partition("=")
        secret = bool(SECRET.search(name))
        if word.startswith("-"):
            hide = secret and not given
        elif hide:
            out.append("...")
            continue
        out.append(f"{name}=..." if given and secret else word)
    return out


def toml_list(words: Sequence[str]) -> str:
    """Words as a TOML array."""
    return "[" + ", ".join(quoted(word) for word in words) + "]"


def quoted(word: str) -> str:
    """A TOML string."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
