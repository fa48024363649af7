"""A command given to a shell (``bash -lc '...'``): refused, and the direct form printed.

A shell takes SIGTERM for itself, hides the engine's flags from the arbiter, and a login shell's
environment is not that of a service.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from arbiterd.engines.base import CommandProblem
from arbiterd.engines.flags import SECRET, quoted, shown, toml_list
from arbiterd.engines.owned_env import OwnedVariable

_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ash", "ksh", "fish"})
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_ENDS = frozenset({"&&", ";", "||", "&", "|", "\n"})
Clean = Callable[[tuple[str, ...]], tuple[str, ...]]


@dataclass(slots=True)
class _Script:
    """What a script comes to."""

    command: tuple[str, ...] = ()
    folder: str = ""
    env: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def assignments(command: Sequence[str]) -> dict[str, str]:
    """The variables that ``env NAME=VALUE ... PROGRAM`` gives its program, {} for another command."""
    out: dict[str, str] = {}
    if command and command[0].rsplit("/", 1)[-1] == "env":
        words = iter(command[1:])
        for word in words:
            if word in ("-u", "-C", "--unset", "--chdir"):
                next(words, None)
            elif match := _ASSIGNMENT.fullmatch(word):
                out[match[1]] = match[2]
            elif not word.startswith("-"):
                break
    return out


def script_of(command: Sequence[str]) -> str | None:
    """The script handed to a shell, None when the command is no such thing."""
    words = list(command)
    while words and words[0].rsplit("/", 1)[-1] in ("sudo", "exec", "env", "nohup"):
        words.pop(0)
        while words and (words[0].startswith("-") or _ASSIGNMENT.fullmatch(words[0])):
            words.pop(0)
    if not words or words[0].rsplit("/", 1)[-1] not in _SHELLS:
        return None
    option = ""
    for at, word in enumerate(words[1:], 1):
        if option in ("-o", "+o", "-O", "+O", "--rcfile", "--init-file"):
            option = ""  # this word is its value
            continue
        option = word
        if word[:1] not in ("-", "+"):
            return None
        if re.fullmatch(r"-[a-zA-Z]*c[a-zA-Z]*", word):
            return words[at + 1] if at + 1 < len(words) else ""
    return None


def shell_problem(
    command: Sequence[str], clean: Clean, owned: Mapping[str, OwnedVariable] | None = None
) -> CommandProblem | None:
    """The problem with the form to write; ``clean`` takes out what the arbiter sets itself, ``owned``
    has the variables that it sets.
    """
    script = script_of(command)
    if script is None:
        return None
    found = _read(script)
    shell = next(w for w in command if w.rsplit("/", 1)[-1] in _SHELLS)
    wrong = (
        f"{shell} cannot be the command: the engine's own flags and its SIGTERM stay in the shell"
    )
    if not found.command:
        return CommandProblem(wrong, 'write command = ["/FULL/PATH/OF/PROGRAM", "ARGUMENT", ...]')
    corrected = clean(found.command)
    right = f"write command = {toml_list(corrected)}"
    ours = owned or {}
    env = {name: text for name, text in found.env.items() if name not in ours}
    if env:
        pairs = ", ".join(f"{name} = {quoted(text)}" for name, text in env.items())
        right += f", env = {{ {pairs} }}"
    if found.hidden:
        right += f"; put {', '.join(found.hidden)} into env_file"
    for name in (one for one in found.env if one in ours):
        right += f"; for {name}: {ours[name].instead(found.env[name])}"
    if found.left_out:
        right += f"; there is no key for {', '.join(found.left_out)}"
    return CommandProblem(wrong, right, corrected)


def _read(script: str) -> _Script:
    found = _Script()
    commands = _commands(script)
    for at, (words, piped) in enumerate(commands):
        main = at == len(commands) - 1 or commands[at + 1][1]
        _take(found, words, last=main and not found.command and not piped)
    program = found.command[:1]
    if program and found.folder and "/" not in program[0]:
        found.command = (f"{found.folder}/{program[0]}", *found.command[1:])
    return found


def _commands(script: str) -> list[tuple[list[str], bool]]:
    """The simple commands of a script, quotes taken off, and whether each reads another's output (a
    log filter behind the engine); [] when it cannot be read as such.
    """
    script = re.sub(r"(?<=\s)[012](?=[<>])", "", script)  # which output: 2>&1
    lexer = shlex.shlex(
        script.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=";&|()<>"
    )
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return []
    out: list[tuple[list[str], bool]] = [([], False)]
    for word in words:
        if word in _ENDS or re.fullmatch(r"[;&|]+", word):
            out.append(([], word in ("|", "|&")))
        else:
            out[-1][0].append(word)
    return [one for one in out if one[0]]


def _take(found: _Script, words: list[str], *, last: bool) -> None:
    """One simple command: an activation, a variable, something else, or the program itself."""
    if words[0] in ("source", ".") and len(words) > 1 and words[1].endswith("/activate"):
        found.folder = words[1].removesuffix("/activate")
        return
    words = _without_redirections(found, words)
    if not words:
        return
    exported = words[0] == "export"
    rest = words[1:] if exported else words
    while rest and (match := _ASSIGNMENT.fullmatch(rest[0])):
        _variable(found, match[1], match[2])
        rest = rest[1:]
    while rest and rest[0] in ("exec", "nohup", "command"):
        rest = rest[1:]
    if not rest:
        return
    if last and not exported and not {"(", ")"} & set(rest):
        found.command = tuple(rest)
    elif words[0] not in ("set", "ulimit"):
        found.left_out.append(" ".join(shown(words)))


def _without_redirections(found: _Script, words: list[str]) -> list[str]:
    """The words without ``2>&1`` and ``> FILE``; a file is named as left out."""
    out: list[str] = []
    rest = iter(words)
    for word in rest:
        if not re.fullmatch(r"[<>&]+", word):
            out.append(word)
            continue
        target = next(rest, "")
        if not target.isdigit():
            found.left_out.append(f"{word} {target}".rstrip())
    return out


def _variable(found: _Script, name: str, text: str) -> None:
    if SECRET.search(name):
        found.hidden.append(name)
    elif "$" in text or "`" in text:
        found.left_out.append(f"{name}={text}")
    else:
        found.env[name] = text
