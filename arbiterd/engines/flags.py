"""Reading and removing command line flags as the engines' own parsers accept them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arbiterd.engines.base import CommandProblem


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
    given = [
        flag
        for flag in owned
        if any(_is_flag(word) and _canonical(word) == flag.name for word in command)
    ]
    corrected = without(command, given)
    return tuple(
        CommandProblem(
            wrong=f"--{flag.name} is set by the arbiter",
            right=f"{flag.instead}; command = {_toml(corrected)}",
            corrected=corrected,
        )
        for flag in given
    )


def container_problem(command: Sequence[str]) -> CommandProblem | None:
    """Docker and podman cannot be a command: processes would escape the unit's cgroup."""
    words = [word.rsplit("/", 1)[-1] for word in command[:2]]
    words = words[1:] if words[:1] == ["sudo"] else words[:1]
    if not words or words[0] not in ("docker", "podman"):
        return None
    image, rest = _image(command)
    tail = f", command = {_toml(rest)}" if rest else ""
    return CommandProblem(
        wrong=f"{words[0]} cannot be the command: its processes live outside the backend's unit",
        right=f'write image = "{image}", container = "{words[0]}"{tail}',
    )


# Flags of `docker run` without a value; every other one takes the next word.
_BARE = {"rm", "it", "i", "t", "d", "detach", "init", "privileged", "interactive", "tty", "P"}


def _image(command: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The image named by a `docker run` line, and what follows it."""
    words = list(command)
    start = words.index("run") + 1 if "run" in words else len(words)
    index = start
    while index < len(words):
        word = words[index]
        if not word.startswith("-"):
            return word, tuple(words[index + 1 :])
        bare = "=" in word or word.lstrip("-") in _BARE
        index += 1 if bare else 2
    return "NAME:TAG", ()


def _toml(words: Sequence[str]) -> str:
    quoted = ('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
    return "[" + ", ".join(quoted) + "]"
