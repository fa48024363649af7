"""A foreign unit made into a backend's entry: its keys, and what has no place there. Pure.

Nothing is dropped in silence: what is not carried over is listed with the reason, and a unit whose
command cannot be read becomes a comment, never a backend of somebody else's choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from arbiterd.config.vllm_config import ConfigFile
from arbiterd.engines import engine_of
from arbiterd.engines.base import CommandProblem
from arbiterd.engines.flags import SECRET, OwnedFlag, given, value_of, without
from arbiterd.engines.owned_env import owned
from arbiterd.engines.run_line import container_problem
from arbiterd.engines.shell_line import script_of
from arbiterd.engines.vllm_command import model_of, read
from arbiterd.engines.vllm_rules import owned_flags
from arbiterd.model.engine_options import VllmOptions
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.survey.facts import UnitFacts
from arbiterd.survey.secrets import is_secret

# What the arbiter decides for every engine itself; the rest of [Service] is listed by name and value.
_DECIDED = frozenset(
    """
    Type Restart RestartSec RestartSteps RestartMaxDelaySec StartLimitInterval StartLimitBurst
    TimeoutStartSec TimeoutStopSec TimeoutSec KillMode KillSignal SendSIGKILL StandardOutput
    StandardError SyslogIdentifier RemainAfterExit NotifyAccess WatchdogSec OOMPolicy PIDFile Slice
    ExecReload ExecStop GuessMainPID
    """.split()  # noqa: SIM905
)
_CARRIED = frozenset({"ExecStart", "User", "Environment", "EnvironmentFile"})
_BYPASS = "every engine has the PATH of the arbiter's units; name programs by their full path"
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_PORT = re.compile(r":(\d{1,5})$")
_DEFAULT_PORTS = {Kind.VLLM: 8000, Kind.OLLAMA: 11434, Kind.TENSORFLOW: 8501}
_GRPC_PORT = 8500
_INSTEAD = {
    "WorkingDirectory": ": an engine starts in its user's home; write full paths (uv run --directory DIR)",
    "Group": ": an engine has the groups of its user",
}
Pairs = tuple[tuple[str, str], ...]
_SHOWN = 120  # characters of a directive's value


@dataclass(frozen=True, slots=True)
class Carried:
    """``keys``: keys of the entry beside ``command``, as data. ``left``: what is not carried over, each
    with its reason or its value. ``why_not``: why this cannot be an entry, "" when it can.
    """

    command: tuple[str, ...]
    keys: Mapping[str, object]
    left: tuple[str, ...] = ()
    why_not: str = ""


def from_unit(unit: UnitFacts, kind: Kind) -> Carried:
    """The entry that a unit of this kind of engine comes to."""
    words, more = _without_env(unit.command)
    command = from_command(words, kind, unit.config)
    if not unit.command:
        return replace(command, why_not=f"{unit.name} has no ExecStart=")
    keys: dict[str, object] = {"user": unit.user or "root"}
    env, left, port = _environment(unit, kind, more)
    if env:
        keys["env"] = env
    if unit.environment_files:
        path, optional = unit.environment_files[-1]
        keys["env_file"] = path
        left += [
            f"EnvironmentFile={other}: a backend has one env_file; put its lines into {path}"
            for other, _ in unit.environment_files[:-1]
        ]
        if optional:
            left.append(f"the '-' of EnvironmentFile=-{path}: env_file must be there")
    if port and port != _DEFAULT_PORTS[kind]:
        keys["port"] = port
    decided = [name for name, _ in unit.directives if name in _DECIDED]
    left += [
        f"{name}={_shown(name, value)}{_INSTEAD.get(name, '')}"
        for name, value in unit.directives
        if name not in _DECIDED | _CARRIED
    ]
    if decided:
        left.append(
            f"{', '.join(f'{name}=' for name in dict.fromkeys(decided))} (decided by the arbiter)"
        )
    left += [f"${name} of its command: a secret; env_file is the place" for name in unit.secret]
    why_not = command.why_not
    if unit.missing:
        files = ", ".join(path for path, _ in unit.environment_files)
        why_not = (
            f"${', $'.join(unit.missing)} of its command stands in {files}, which cannot be read"
        )
    return Carried(command.command, {**keys, **command.keys}, (*command.left, *left), why_not)


def _without_env(words: tuple[str, ...]) -> tuple[tuple[str, ...], Pairs]:
    """`env A=b PROGRAM ...` as (the words from PROGRAM on, its variables); others as they are."""
    if not words or words[0].rsplit("/", 1)[-1] != "env":
        return words, ()
    at, pairs = 1, []
    while at < len(words) and (found := _ASSIGNMENT.fullmatch(words[at])):
        pairs.append((found[1], found[2]))
        at += 1
    if at == len(words) or words[at].startswith("-"):
        return words, ()  # options of env itself
    return words[at:], tuple(pairs)


def _environment(unit: UnitFacts, kind: Kind, more: Pairs) -> tuple[dict[str, str], list[str], int]:
    """(env, what is not carried over, the port that OLLAMA_HOST names). ``more``: set by the command."""
    ours = owned(BackendSettings("x", kind, unit.command, 1, 1))
    env: dict[str, str] = {}
    left: list[str] = []
    port = 0
    for name, value in (*unit.environment, *more):
        if name == "PATH":
            left.append(f"{name}={_shown(name, value)}: {_BYPASS}")
        elif name in unit.in_files and (name, value) not in more:
            path = unit.environment_files[-1][0]
            left.append(f"{name} of Environment=: the value in {path} counts")
        elif name in ours:
            left.append(f"{name}={value}: {ours[name].instead(value)}")
            found = _PORT.search(value) if name == "OLLAMA_HOST" else None
            port = int(found[1]) if found else port
        elif is_secret(name, value):
            left.append(f"{name}: a secret; env_file is the place")
        elif not value.isprintable():
            left.append(f"{name}: its value has control characters")
        else:
            env[name] = value
    return env, left, port


def _shown(name: str, value: str) -> str:
    """A value for people; command lines of helpers may hold secrets."""
    if name.startswith("Exec") or SECRET.search(value):
        return value.split(" ", 1)[0] + (" ..." if " " in value else "")
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."


def from_command(command: Sequence[str], kind: Kind, config: ConfigFile | None = None) -> Carried:
    """The entry that a command line comes to, without what the arbiter sets itself. ``config``: what
    a vLLM's ``--config`` holds.
    """
    words = tuple(command)
    if not all(word.isprintable() for word in words):
        return Carried(words, {}, (), "its command has control characters")
    match kind:
        case Kind.VLLM:
            return _vllm(words, config)
        case Kind.TENSORFLOW:
            return _tensorflow(words)
        case _:
            return _ollama(words)


def _ollama(words: tuple[str, ...]) -> Carried:
    """A command that is not seen to start Ollama may be anything: a script, an exporter."""
    said = _checked(words, Kind.OLLAMA, {}, [])
    names = {word.rsplit("/", 1)[-1] for word in words}
    serves = bool(names & {"serve", "start"}) and any("ollama" in name for name in names)
    if said.why_not or serves:
        return said
    return replace(said, why_not='its command is not seen to start Ollama: "/PATH/ollama", "serve"')


def _vllm(words: tuple[str, ...], config: ConfigFile | None) -> Carried:
    spoken = read(words)
    keys: dict[str, object] = {}
    left: list[str] = []
    port = spoken.value("port")
    if port and port.isdigit() and int(port) != _DEFAULT_PORTS[Kind.VLLM]:
        keys["port"] = int(port)
    host = spoken.value("host")
    if host and host not in ("127.0.0.1", "localhost", "::1"):
        left.append(f'--host {host}: the doors open on [gateway] bind = "{host}"')
    drop = {"port", "host"}
    kept = spoken.without(frozenset(drop))
    if config is None:
        return _checked(kept, Kind.VLLM, keys, left)
    if config.wrong and not model_of(words):
        return Carried(words, keys, tuple(left), f"--config {config.path}: {config.wrong}")
    for flag in owned_flags(BackendSettings("x", Kind.VLLM, kept, 8000, 18000)):
        if flag.name in config.lines:
            key, line = config.lines[flag.name]
            why = f"take {key} (line {line}) out of {config.path}: {flag.instead}"
            return Carried(words, keys, tuple(left), why)
    return _checked(kept, Kind.VLLM, keys, left, config.words)


def _tensorflow(words: tuple[str, ...]) -> Carried:
    keys: dict[str, object] = {}
    rest, grpc = value_of(words, "rest-api-port"), value_of(words, "port")
    if rest and rest.isdigit() and int(rest) not in (0, _DEFAULT_PORTS[Kind.TENSORFLOW]):
        keys["port"] = int(rest)
    if grpc and grpc.isdigit() and int(grpc) not in (0, _GRPC_PORT):
        keys["grpc_port"] = int(grpc)
    if script_of(words) is not None or container_problem(words) is not None:
        return _checked(words, Kind.TENSORFLOW, keys, [])
    drop = [OwnedFlag("rest-api-port", ""), OwnedFlag("port", "")]
    left = []
    if batching := value_of(words, "batching-parameters-file"):
        left.append(f'--batching_parameters_file={batching}: write batching = "{batching}"')
    elif given(words, "enable-batching"):
        left.append("--enable_batching: write batching = { max_batch_size = N, ... }")
    drop += [OwnedFlag("batching-parameters-file", ""), OwnedFlag("enable-batching", "", False)]
    path = value_of(words, "model-base-path")
    if not path and not value_of(words, "model-config-file"):
        return Carried(words, keys, (), "its command names no model")
    if path and not value_of(words, "model-config-file"):
        keys["models"] = {value_of(words, "model-name") or "default": path}
        drop += [OwnedFlag("model-base-path", ""), OwnedFlag("model-name", "")]
    return _checked(without(words, drop), Kind.TENSORFLOW, keys, left)


def _checked(
    words: tuple[str, ...],
    kind: Kind,
    keys: dict[str, object],
    left: list[str],
    config: tuple[str, ...] = (),
) -> Carried:
    """What `check` would refuse is taken out and listed; what is still refused then is no entry."""
    problems = _problems(words, kind, config)
    if problems and (script_of(words) is not None or container_problem(words) is not None):
        return Carried(words, keys, tuple(left), f"{problems[0].wrong}; {problems[0].right}")
    corrected = tuple(next((one.corrected for one in problems if one.corrected), words))
    gone = _gone(words, corrected)
    refused = [one for one in _problems(corrected, kind, config) if one.severity == "error"]
    if refused:
        return Carried(words, keys, tuple(left), f"{refused[0].wrong}; {refused[0].right}")
    return Carried(corrected, keys, (*left, *gone))


def _gone(words: Sequence[str], kept: Sequence[str]) -> list[str]:
    """The options that are in ``words`` only, each with its values; a secret's are not shown."""
    rest = list(kept)
    out: list[list[str]] = []
    for word in words:
        if rest and word == rest[0]:
            rest.pop(0)
        elif word.startswith("-") or not out:
            out.append([word])
        else:
            out[-1].append(word)
    return [
        f"{one[0].split('=', 1)[0]}: a secret; env_file is the place"
        if SECRET.search(one[0].split("=", 1)[0])
        else f"{' '.join(one)} (set by the arbiter)"
        for one in out
    ]


def _problems(
    words: tuple[str, ...], kind: Kind, config: tuple[str, ...]
) -> tuple[CommandProblem, ...]:
    vllm = VllmOptions(config_words=config)
    return engine_of(kind).check_command(BackendSettings("x", kind, words, 8000, 18000, vllm=vllm))
