"""An installed Ollama unit made into the backend's entry of the configuration. Pure.

Values are systemd's own (survey/units.py); the text is edited with tomlkit so that comments stay, and
the result is compared as data with what was meant: no edit is trusted unseen.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Comment, Item, Table, Whitespace

from arbiterd.errors import ArbiterError
from arbiterd.survey.facts import UnitFacts

# What the arbiter sets for Ollama itself (engines/ollama.py), and the key that decides it now.
REPLACED: Mapping[str, str] = {
    "OLLAMA_HOST": "port and gateway.bind (clients keep their address, the engine moves behind it)",
    "OLLAMA_VULKAN": "always 0: a GPU hidden from it would come back through Vulkan",
    "OLLAMA_MAX_LOADED_MODELS": "max_loaded_models",
    "OLLAMA_NUM_PARALLEL": "parallel",
    "OLLAMA_CONTEXT_LENGTH": "context_length",
    "OLLAMA_KEEP_ALIVE": "keep_alive",
    "OLLAMA_MAX_QUEUE": "max_queue",
    "OLLAMA_SCHED_SPREAD": "gpu of the mode",
    "OLLAMA_GPU_OVERHEAD": "memory of the mode",
    "LLAMA_ARG_FIT": "memory of the mode",
    "LLAMA_ARG_FIT_TARGET": "memory of the mode",
    "CUDA_VISIBLE_DEVICES": "gpu of the mode",
    "NVIDIA_VISIBLE_DEVICES": "gpu of the mode",
    "CUDA_DEVICE_ORDER": "always PCI_BUS_ID",
    "PATH": "the PATH of every engine",
}
KEYS = ("command", "user", "env", "env_file")
_LINE_KEY = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=")


@dataclass(frozen=True, slots=True)
class Replaced:
    """A variable of the unit that is the arbiter's to set. ``value`` "" when it is in a file of
    secrets, whose values are not shown.
    """

    name: str
    value: str
    by: str


@dataclass(frozen=True, slots=True)
class Handover:
    """``values``: keys of the entry as they shall be (None: taken out). ``env_text``: the file to
    write at ``env_path`` for variables that stood in EnvironmentFile=; "" for none.
    """

    text: str
    values: Mapping[str, Any]
    replaced: tuple[Replaced, ...]
    env_path: str = ""
    env_text: str = ""


def handover(
    text: str, backend: str, unit: UnitFacts, files: Mapping[str, str], env_path: str
) -> Handover:
    """The new text. ``files``: contents of the unit's environment files; ``env_path``: where a copy
    may be written without the arbiter's own variables.

    Raises:
        ArbiterError: the unit has no command, or the text cannot be edited faithfully.

    """
    if not unit.command:
        msg = f"cannot take over {unit.name}: it has no ExecStart="
        raise ArbiterError(msg)
    old = entry_of(text, backend)
    replaced = [
        Replaced(key, value, REPLACED[key]) for key, value in unit.environment if key in REPLACED
    ]
    env = dict(old.get("env", {}))
    env |= {key: value for key, value in unit.environment if key not in REPLACED}
    values: dict[str, Any] = {
        "command": list(unit.command),
        "user": unit.user or "root",
        "env": env or None,
        "env_file": old.get("env_file"),
    }
    env_text = ""
    if files:
        values["env_file"], env_text, hidden = _env_files(files, env_path)
        replaced += hidden
    new = edit(text, backend, values)
    return Handover(new, values, tuple(replaced), env_path if env_text else "", env_text)


def _env_files(files: Mapping[str, str], env_path: str) -> tuple[str, str, list[Replaced]]:
    """(env_file, text of a copy, what is left out). One file without any variable of ours is named
    as it is; else a copy: every launch overrides them, and a file that says otherwise misleads.
    """
    hidden: dict[str, Replaced] = {}
    kept: list[str] = []
    for content in files.values():
        for line in logical_lines(content):
            found = _LINE_KEY.match(line)
            if found and found[1] in REPLACED:
                hidden[found[1]] = Replaced(found[1], "", REPLACED[found[1]])
            else:
                kept.append(line)
    if len(files) == 1 and not hidden:
        return next(iter(files)), "", []
    return env_path, "\n".join(kept) + "\n", list(hidden.values())


def logical_lines(content: str) -> Iterable[str]:
    """Lines of an EnvironmentFile; one that ends in a backslash goes on in the next."""
    held = ""
    for line in content.splitlines():
        held = f"{held}\n{line}" if held else line
        if line.endswith("\\") and not line.lstrip().startswith(("#", ";")):
            continue
        yield held
        held = ""
    if held:
        yield held


def entry_of(text: str, backend: str) -> dict[str, Any]:
    """The backend's table as data.

    Raises:
        ArbiterError: the text is no TOML, or has no such backend.

    """
    try:
        entry = tomllib.loads(text)["backends"][backend]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        msg = f"the configuration has no [backends.{backend}] that can be read: {error}"
        raise ArbiterError(msg) from None
    return dict(entry)


def edit(text: str, backend: str, values: Mapping[str, Any]) -> str:
    """The text with these keys of the backend set (None: taken out), everything else untouched.

    Raises:
        ArbiterError: the result does not say exactly that; edit by hand.

    """
    wanted = copy.deepcopy(tomllib.loads(text))
    _apply_plain(wanted["backends"][backend], values)
    try:
        document = tomlkit.parse(text)
        entry: Any = document["backends"][backend]
        for key, value in values.items():
            _set(entry, key, value)
        out = tomlkit.dumps(document)
        same = tomllib.loads(out) == wanted
    except (TOMLKitError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError):
        same = False
    if not same:
        words = ", ".join(
            f"take {key} out" if value is None else f"{key} = {value!r}"
            for key, value in values.items()
        )
        msg = f"cannot edit [backends.{backend}] without changing more; do it by hand: {words}"
        raise ArbiterError(msg)
    return out


def _apply_plain(entry: MutableMapping[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value is None:
            entry.pop(key, None)
        else:
            entry[key] = value


def _set(entry: Any, key: str, value: Any) -> None:
    if value is None:
        entry.pop(key, None)
    elif isinstance(value, Mapping) and key in entry:
        table = entry[key]
        for gone in [name for name in table if name not in value]:
            del table[gone]
        for name, one in value.items():
            if name not in table or table[name] != one:
                _put(table, name, one)
    elif key not in entry or entry[key] != value:
        _put(entry, key, _item(value))


def _put(table: Any, key: str, value: Any) -> None:
    """Replace in place; a new key goes before the blank lines and comments that end a table: they
    belong to what follows.
    """
    if key in table or not isinstance(table, Table):
        table[key] = value
        return
    body = table.value.body
    tail: list[Any] = []
    while body and body[-1][0] is None and isinstance(body[-1][1], Comment | Whitespace):
        tail.append(body.pop())
    table[key] = value
    body.extend(reversed(tail))


def _item(value: Any) -> Item:
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    made: Item = tomlkit.item(value)
    return made
