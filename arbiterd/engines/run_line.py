"""A `docker run` line as a command is refused: here it is read, and the ``image`` form printed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile

from arbiterd.engines.base import CommandProblem
from arbiterd.engines.flags import SECRET, quoted, toml_list
from arbiterd.engines.image import volume

# Flags of `docker run` and `podman run` without a value; every other one takes the next word.
_BARE = frozenset(
    [
        "rm",
        "detach",
        "init",
        "privileged",
        "interactive",
        "tty",
        "publish-all",
        "read-only",
        "no-healthcheck",
        "quiet",
        "replace",
        "oom-kill-disable",
        "sig-proxy",
        "disable-content-trust",
        "tls-verify",
        "no-hosts",
        "rmi",
    ]
)
_SHORT = {
    "d": "detach",
    "i": "interactive",
    "t": "tty",
    "P": "publish-all",
    "q": "quiet",
    "e": "env",
    "v": "volume",
    "p": "publish",
    "u": "user",
    "l": "label",
    "m": "memory",
    "w": "workdir",
    "h": "hostname",
    "c": "cpu-shares",
    "a": "attach",
}
# What the arbiter does itself: nothing is lost without them.
_OURS = frozenset(
    [
        "rm",
        "detach",
        "init",
        "interactive",
        "tty",
        "gpus",
        "device",
        "name",
        "restart",
        "ipc",
        "shm-size",
        "runtime",
        "pull",
        "replace",
        "label",
        "log-driver",
        "log-opt",
        "stop-timeout",
        "network",
        "net",
        "cidfile",
        "pids-limit",
        "quiet",
        "sig-proxy",
    ]
)
_PORTS = {"8000": "port", "8501": "port", "11434": "port", "8500": "grpc_port"}


@dataclass(slots=True)
class _Form:
    """What the line becomes."""

    image: str = "NAME:TAG"
    command: tuple[str, ...] = ()
    models: str = ""
    env: dict[str, str] = field(default_factory=dict)
    env_file: str = ""
    hidden: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    ports: dict[str, str] = field(default_factory=dict)
    user: str = ""
    left_out: list[str] = field(default_factory=list)


def container_problem(command: Sequence[str]) -> CommandProblem | None:
    """Docker and podman cannot be a command: processes would escape the unit's cgroup."""
    names = [word.rsplit("/", 1)[-1] for word in command]
    if names[:1] == ["sudo"]:
        names = list(dropwhile(lambda name: name.startswith("-"), names[1:]))
    words = names[:1]
    if not words or words[0] not in ("docker", "podman"):
        return None
    form = _read(command)
    return CommandProblem(
        wrong=f"{words[0]} cannot be the command: its processes live outside the backend's unit",
        right=f"write {_toml_form(form, words[0])}{_remarks(form)}",
    )


def _read(command: Sequence[str]) -> _Form:
    form = _Form()
    words = list(command)
    rest = words[words.index("run") + 1 :] if "run" in words else []
    stream = iter(rest)
    for word in stream:
        if not word.startswith("-"):
            form.image, form.command = word, tuple(_open_words(form, stream))
            break
        for name, value in _options(word, stream):
            _take(form, name, value)
    _serving_model(form)
    return form


def _open_words(form: _Form, stream: Iterator[str]) -> Iterator[str]:
    """The command within the image without vLLM's key, which has a variable of its own: what is printed
    here comes into the journal.
    """
    for word in stream:
        name, given, _ = word.partition("=")
        if name == "--api-key":
            form.hidden.append("VLLM_API_KEY")
            if not given:
                next(stream, "")
        else:
            yield word


def _options(word: str, stream: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(long name, value) of '--env A=b', '--env=A=b', '-eA=b', '-it'."""
    if word.startswith("--"):
        name, given, value = word[2:].partition("=")
        if not given and name not in _BARE:
            value = next(stream, "")
        yield name, value
        return
    letters = word[1:]
    while letters:
        name = _SHORT.get(letters[0], letters[0])
        letters = letters[1:]
        if name in _BARE:
            yield name, ""
            continue
        yield name, letters.removeprefix("=") or next(stream, "")
        return


def _take(form: _Form, name: str, value: str) -> None:
    match name:
        case "env":
            key, given, text = value.partition("=")
            if not given or SECRET.search(key):
                form.hidden.append(key)
            else:
                form.env[key] = text
        case "env-file":
            form.env_file = value
        case "volume":
            text = ":".join(_plain_options(value))
            if volume(text):
                form.volumes.append(text)
            else:
                form.left_out.append(f"--volume {value}")
        case "publish":
            outside, _, inner = value.partition("/")[0].rpartition(":")
            key, host = _PORTS.get(inner, "port"), outside.rpartition(":")[2]
            if host and host != inner:
                form.ports[key] = host
        case "user":
            form.user = value
        case _ if name not in _OURS:
            form.left_out.append(f"--{name} {value}".rstrip())


def _plain_options(value: str) -> list[str]:
    """SOURCE:TARGET[:ro]; SELinux's z and Z and the like are no concern of the form."""
    parts = value.split(":")
    if len(parts) == 3:
        return [*parts[:2], "ro"] if "ro" in parts[2].split(",") else parts[:2]
    return parts


def _serving_model(form: _Form) -> None:
    """tensorflow/serving's MODEL_NAME with a volume on /models/NAME is one of ``models``."""
    name = form.env.get("MODEL_NAME", "")
    for text in form.volumes:
        found = volume(text)
        if name and found and found[1] == f"/models/{name}" and found[0].startswith("/"):
            form.volumes.remove(text)
            del form.env["MODEL_NAME"]
            form.models = f"{_key(name)} = {quoted(found[0])}"
            return


def _toml_form(form: _Form, client: str) -> str:
    out = [f"image = {quoted(form.image)}", f"container = {quoted(client)}"]
    if form.command:
        out.append(f"command = {toml_list(form.command)}")
    if form.models:
        out.append(f"models = {{ {form.models} }}")
    if form.env:
        pairs = ", ".join(f"{_key(name)} = {quoted(text)}" for name, text in form.env.items())
        out.append(f"env = {{ {pairs} }}")
    if form.env_file or form.hidden:
        out.append(f"env_file = {quoted(form.env_file or '/etc/gpu-arbiter.env')}")
    if form.volumes:
        out.append(f"volumes = {toml_list(form.volumes)}")
    out += [f"{key} = {port}" for key, port in form.ports.items()]
    if form.user:
        out.append(f"user = {quoted(form.user)}")
    return ", ".join(out)


def _remarks(form: _Form) -> str:
    out = ""
    if form.hidden:
        out += f"; put {', '.join(form.hidden)} into env_file"
    if form.left_out:
        out += f"; there is no key for {', '.join(form.left_out)}"
    return out


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name) else quoted(name)
