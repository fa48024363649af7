"""One backend of the configuration against this host: command, user, folders, models. Reads only."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob

from arbiterd.engines.vllm_command import model_of
from arbiterd.linux.procfs import user_name
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.survey import access, models
from arbiterd.survey.facts import Finding, Venv

ENGINES_USER = "gpu-engines"
SYSUSERS = "/usr/local/lib/sysusers.d/gpu-arbiter.conf"
TMPFILES = "/usr/local/lib/tmpfiles.d/gpu-arbiter.conf"
_DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*")


@dataclass(frozen=True, slots=True)
class Want:
    """A path and what the engine's user must be able to do there. ``optional``: may be missing.
    ``made``: a folder that the engine makes itself when it is missing.
    ``bare``: wanted by the daemon, which is root without capabilities.
    """

    path: str
    needs: str
    what: str
    why: str
    whole: bool = False
    optional: bool = False
    made: bool = False
    bare: bool = False


def check(
    backend: BackendSettings, config: str, venvs: Iterable[Venv]
) -> tuple[list[Finding], list[str]]:
    """(findings, what could not be looked at) of a backend under systemd."""
    name = backend.name
    user = backend.user or ENGINES_USER
    try:
        home = pwd.getpwnam(user).pw_dir
    except KeyError:
        return [_no_user(name, user)], []
    out: list[Finding] = []
    unseen: list[str] = []
    if backend.env_file and not os.path.exists(backend.env_file):
        what = f"{name}: env_file {backend.env_file} is not there"
        mend = f"install -m 0600 /dev/null {shlex.quote(backend.env_file)}"
        out.append(Finding("env_file", "blocks", what, "its unit cannot start without it", mend))
    wants = list(_wants(backend, home))
    for bare in (False, True):
        mine = [one for one in wants if one.bare is bare]
        who = "root" if bare else user
        found = access.obstacles(who, [(one.path, one.needs) for one in mine], bare=bare)
        if found is None:
            unseen.append(f"{name}: what user {who} may reach (be root to look)")
            continue
        pairs = zip(mine, found, strict=True)
        out += [
            _obstructed(name, want, one, backend.env.get("HOME") or home, config)
            for want, one in pairs
            if one is not None and not (one.need == "?" and (want.optional or want.made))
        ]
        pairs = zip(mine, found, strict=True)
        absent = [want for want, one in pairs if want.made and one is not None and one.need == "?"]
        out += _not_made(name, user, absent)
    if backend.kind is Kind.VLLM and _hidden(hub_of(backend, home)):
        unseen.append(f"{name}: whether its model is in {hub_of(backend, home)}")
    else:
        out += _prefetch(backend, user, home, venvs)
    return out, unseen


def hub_of(backend: BackendSettings, home: str) -> str:
    """The Hugging Face cache of this backend."""
    return models.hub_folder(backend.env, backend.env.get("HOME") or home)


def _hidden(path: str) -> bool:
    """Whether we, not being root, may not look there."""
    if os.geteuid() == 0:
        return False
    found = access.obstacles(user_name(os.geteuid()), [(path, "rx")])
    return found is None or (found[0] is not None and found[0].need != "?")


def _no_user(name: str, user: str) -> Finding:
    mend = f"systemd-sysusers {SYSUSERS}"
    if user != ENGINES_USER:
        mend = f"useradd --system --create-home --shell /usr/sbin/nologin {shlex.quote(user)}"
    return Finding("no_user", "blocks", f"{name}: there is no user {user}", "it runs as that", mend)


def ollama_folder(backend: BackendSettings, home: str) -> str:
    """Where this Ollama keeps its models."""
    return backend.env.get("OLLAMA_MODELS") or f"{backend.env.get('HOME') or home}/.ollama/models"


def _wants(backend: BackendSettings, home: str) -> Iterable[Want]:
    own = backend.env.get("HOME") or home
    yield Want(own, "rwx", "its home folder", "caches are written there")
    program = backend.command[0] if backend.command else ""
    if program.startswith("/") and not backend.image:
        yield Want(program, "x", "its command", "it cannot be started", optional=True)
        why = "the daemon looks for the command before each start"
        yield Want(program, "x", "its command", why, optional=True, bare=True)
    for pattern in _DEVICES:
        for path in sorted(glob(pattern)):
            yield Want(path, "rw", "the GPU's device file", "CUDA cannot be used")
    if backend.kind is Kind.OLLAMA:
        folder = ollama_folder(backend, home)
        why = "models are read there, and failover writes a second name beside them"
        yield Want(folder, "rwx", "its model folder", why, whole=True, made=True)
    for model, path in backend.model_paths.items():
        yield Want(path, "rx", f"model {model}", "it cannot be served", whole=True)
    if backend.kind is Kind.VLLM:
        named = model_of(backend.command, backend.vllm.config_words)
        if named.startswith("/"):
            yield Want(named, "rx", f"model {named}", "it cannot be served", whole=True)
        elif not backend.image:
            why = "its model is read there, and downloaded to it"
            yield Want(hub_of(backend, home), "rx", "its model cache", why, whole=True, made=True)


def _not_made(name: str, user: str, absent: Iterable[Want]) -> Iterable[Finding]:
    """Folders that are not there and that the engine, as its user, could not make."""
    for want in absent:
        parent = want.path
        while not os.path.exists(parent):
            parent = os.path.dirname(parent)
        found = access.obstacles(user, [(parent, "wx")])
        if not found or found[0] is None:
            continue
        what = f"{name}: {want.what} {want.path} is not there, and user {user} may not make it in {parent}"
        made = f"install -d -o {shlex.quote(user)} -g {access.group_of(user)} -m 0750"
        yield Finding("folder", "blocks", what, want.why, f"{made} {shlex.quote(want.path)}")


def _obstructed(name: str, want: Want, one: access.Obstacle, home: str, config: str) -> Finding:
    code = "folder" if want.path == home else "access"
    words = one.words
    if want.bare:
        words = f"the daemon (root without capabilities) may not enter {one.path}"
    mend = access.mend(one, whole=want.whole and one.path == want.path)
    if one.need == "?" and want.path == "/var/lib/gpu-engines":
        mend = f"systemd-tmpfiles --create {TMPFILES}"
    elif one.need == "?" and want.path != home:
        mend = f"sudoedit {shlex.quote(config)}"
    elif want.path.startswith("/dev/nvidia"):
        mend = f"usermod -aG video,render {shlex.quote(one.user)}"
    return Finding(code, "blocks", f"{name}: {want.what}: {words}", want.why, mend)


def _prefetch(
    backend: BackendSettings, user: str, home: str, venvs: Iterable[Venv]
) -> Iterable[Finding]:
    """vLLM downloads its model at the first start, within start_timeout; better before."""
    model = (
        model_of(backend.command, backend.vllm.config_words) if backend.kind is Kind.VLLM else ""
    )
    if not model or model.startswith("/") or backend.image:
        return
    env = backend.env
    hub = hub_of(backend, home)
    if models.in_cache(hub, model):
        return
    program = backend.command[0]
    venv = next((one for one in venvs if one.program == program and one.hf), None)
    hf = (
        venv.hf
        if venv is not None
        else f"{os.path.dirname(program)}/hf"
        if "/" in program
        else "hf"
    )
    kept = [f"{k}={v}" for k, v in env.items() if k.startswith(("HF_", "XDG_CACHE", "HOME"))]
    words = [f"HOME={home}", *kept, hf, "download", model]
    line = " ".join(shlex.quote(word) for word in words)
    yield Finding(
        "not_fetched",
        "advice",
        f"{backend.name}: {model} is not in {hub}",
        "vLLM would download it at its first start and may run into start_timeout",
        f"runuser -u {shlex.quote(user)} -- env {line}",
    )
