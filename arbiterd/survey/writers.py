"""Which files and folders of the configuration others may change: programs, keys, models. Reads only.

Every absolute path in the file counts, whatever its key is called: a program that another user can
replace runs as the backend's user, an env_file is read by root, a model folder is what is served.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from arbiterd.files.trust import Weak, interpreter, weak
from arbiterd.model.settings import BackendSettings, Kind, Settings
from arbiterd.sense.versions import DEFAULT_USER, PATH
from arbiterd.survey.models import hub_folder

# Where an engine's own user may write: it keeps models and caches there.
_ENGINES_OWN = frozenset({"env", "models", "volumes", "home", "sandbox"})
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Watched:
    """A path of the configuration. ``key``: where it stands in the file. ``backend``: "" for none.
    ``own``: the backend's user may write it, too.
    """

    key: tuple[str, ...]
    path: str
    backend: str
    own: bool


@dataclass(frozen=True, slots=True)
class Writable:
    """A watched path that others may change: who, and the commands that close it. ``by_root``: it is of
    the command of an engine that runs as root.
    """

    watched: Watched
    who: str
    mend: str
    by_root: bool = False

    @property
    def words(self) -> str:
        """'/opt/x/ollama can be changed by user alice (/opt/x)'."""
        root = ", and its engine runs as root" if self.by_root else ""
        return f"{self.watched.path} can be changed by {self.who}{root}"


def writable(text: str, settings: Settings, *, direct: bool) -> list[Writable]:
    """Each watched path of this configuration that others may write, in the file's order.
    ``direct``: engines without a user run as we do (launcher direct).
    """
    out: list[Writable] = []
    seen: set[str] = set()
    for one in (*watched(text, settings), *_ours(settings)):
        if one.path in seen:
            continue
        trusted = {0, *({os.geteuid()} if direct else ())}
        backend = settings.active.backends.get(one.backend)
        uids = _uids(backend, direct=direct) if backend else set()
        found = weak(one.path, trusted | uids if one.own else trusted)
        if found:
            seen.add(one.path)
            by_root = uids == {0} and one.key[-1] == "command"
            out.append(Writable(one, _who(found), _mend(one.path, found), by_root))
    return out


def watched(text: str, settings: Settings) -> Iterator[Watched]:
    """The configuration file, each path in it, and where engines look without being told."""
    yield Watched(("mode",), settings.source.path, "", own=False)
    tree: Mapping[str, object] = {}
    with suppress(tomllib.TOMLDecodeError):
        tree = tomllib.loads(text)
    names = settings.active.backends
    for key, value in _leaves(tree):
        at = 1 if key[0] == "backends" else 2 if key[0] == "modes" else 0
        backend = key[at] if at and len(key) > at + 1 else ""
        if key[0] == "modes" and (key[1] != settings.mode or backend not in names):
            continue
        rest = key[at + 1 :] if backend else key[1:]
        first = rest[0] if rest else ""
        own = first in _ENGINES_OWN or (first == "command" and rest[1:] != ("0",))
        where = tuple(part for part in key if not part.isdigit())
        for path in _paths(value, first):
            yield Watched(where, path, backend, own)
    for name, one in names.items():
        yield from _implied(name, one)


def _leaves(tree: object, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of the file, with its keys; items of a list by their number."""
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, (*key, str(name)))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _leaves(value, (*key, str(number)))


def _paths(text: str, key: str) -> list[str]:
    """Absolute paths in a value: /x, --option=/x, SOURCE:TARGET of a volume, a list with colons."""
    if text.startswith("-"):
        text = text.partition("=")[2]
    parts = text.split(":")[:1] if key == "volumes" else text.split(":")
    return [part for part in parts if part.startswith("/") and part != "/"]


def _implied(name: str, backend: BackendSettings) -> Iterator[Watched]:
    """The program that a bare name means, the interpreter of a script, and where models lie."""
    at = ("backends", name, "command")
    program = shutil.which(backend.command[0], path=PATH) if backend.command else None
    if program and not backend.image:
        yield Watched(at, program, name, own=False)
        used = interpreter(Path(os.path.realpath(program)))
        if used is not None:
            yield Watched(at, str(used), name, own=False)
    home = backend.env.get("HOME", "")
    with suppress(KeyError):
        home = home or pwd.getpwnam(backend.user or DEFAULT_USER).pw_dir
    if not home or backend.image:
        return
    if backend.kind is Kind.OLLAMA:
        models = backend.env.get("OLLAMA_MODELS") or f"{home}/.ollama/models"
        yield Watched(("backends", name, "models"), models, name, own=True)
    elif backend.kind is Kind.VLLM:
        yield Watched(at, hub_folder(backend.env, home), name, own=True)


def _ours(settings: Settings) -> Iterator[Watched]:
    """What the daemon itself is, and keeps."""
    arbiter = settings.arbiter
    yield Watched(("arbiter", "state_dir"), arbiter.state_dir, "", own=False)
    yield Watched(("arbiter", "runtime_dir"), arbiter.runtime_dir, "", own=False)
    yield Watched(("arbiter",), sys.executable, "", own=False)
    yield Watched(("arbiter",), str(Path(__file__).parents[1]), "", own=False)


def _uids(backend: BackendSettings, *, direct: bool) -> set[int]:
    if direct and not backend.user:
        return {os.geteuid()}
    with suppress(KeyError):
        return {pwd.getpwnam(backend.user or DEFAULT_USER).pw_uid}
    return set()


def _who(found: tuple[Weak, ...]) -> str:
    by: dict[str, list[str]] = {}
    for one in found:
        by.setdefault(one.who, []).append(one.path)
    texts = []
    for who, paths in by.items():
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        texts.append(f"{who} ({', '.join(paths[:_SHOWN])}{more})")
    return ", ".join(texts)


def _mend(path: str, found: tuple[Weak, ...]) -> str:
    """The commands; where a folder above is another user's, it may be a home: it is not taken away."""
    near = {path, os.path.realpath(path)}
    if any(one.who.startswith("user ") and one.path not in near for one in found):
        return "keep it in a folder that only root may write, below /opt or /etc"
    return " && ".join(dict.fromkeys(one.mend for one in found))
