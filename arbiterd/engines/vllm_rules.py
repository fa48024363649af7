"""What the arbiter accepts and adds in a vLLM command: owned flags, names, forms."""

from __future__ import annotations

from collections.abc import Sequence

from arbiterd.engines import owned_env
from arbiterd.engines.base import CommandProblem
from arbiterd.engines.flags import OwnedFlag, toml_list
from arbiterd.engines.run_line import container_problem
from arbiterd.engines.shell_line import shell_problem
from arbiterd.engines.vllm_command import (
    Command,
    lora_names,
    model_first,
    model_of,
    read,
    short_name,
    spliced,
)
from arbiterd.model.settings import BackendSettings

_OWNED = (
    OwnedFlag("host", "set gateway.bind"),
    OwnedFlag("port", "set port"),
    OwnedFlag("gpu-memory-utilization", "set memory in the mode"),
    OwnedFlag("kv-cache-memory-bytes", "set memory in the mode"),
    OwnedFlag("enable-sleep-mode", "set sleep = true"),
    OwnedFlag("shutdown-timeout", "set drain_timeout"),
    OwnedFlag("max-num-queued-reqs", "set max_in_flight and max_queue"),
)
_SECRETS = {"api-key": "VLLM_API_KEY", "hf-token": "HF_TOKEN"}
_TLS = (
    "ssl-keyfile",
    "ssl-certfile",
    "ssl-ca-certs",
    "ssl-cert-reqs",
    "ssl-ciphers",
    "enable-ssl-refresh",
)
ENV_FILE = "/etc/gpu-arbiter.env"


def owned_flags(backend: BackendSettings) -> tuple[OwnedFlag, ...]:
    """What the arbiter sets itself for this backend."""
    out = list(_OWNED)
    if backend.vllm.max_model_len is not None:
        out.append(OwnedFlag("max-model-len", "set max_model_len"))
    if backend.vllm.max_num_seqs is not None:
        out.append(OwnedFlag("max-num-seqs", "set max_num_seqs"))
    return tuple(out)


def spoken(backend: BackendSettings) -> Command:
    """The command with the options of its ``--config`` file."""
    return read(spliced(backend.command, backend.vllm.config_words))


def check(backend: BackendSettings) -> tuple[CommandProblem, ...]:
    """Every problem of the command; those of a ``--config`` file are the configuration's to report."""
    owned = owned_flags(backend)
    gone = frozenset(flag.name for flag in owned) | _SECRETS.keys()
    form = container_problem(backend.command) or shell_problem(
        backend.command, lambda words: read(words).without(gone), owned_env.owned(backend)
    )
    if form is not None:
        return (form,)
    command = read(backend.command)
    corrected = command.without(gone)
    out = [
        CommandProblem(
            wrong=f"--{flag.name} is set by the arbiter",
            right=f"{flag.instead}; command = {toml_list(corrected)}",
            corrected=corrected,
        )
        for flag in owned
        if command.has(flag.name) or command.has(f"no-{flag.name}")
    ]
    if not model_of(backend.command, backend.vllm.config_words):
        out.append(
            CommandProblem(
                "the command names no model", 'write command = ["vllm", "serve", "MODEL"]'
            )
        )
    return (*out, *_warnings(command, corrected))


def _warnings(command: Command, corrected: Sequence[str]) -> list[CommandProblem]:
    """What works less well than it looks."""
    out = []
    for name, variable in _SECRETS.items():
        if command.values(name):
            wrong = (
                f"the value of --{name} can be read by every user of this host in /proc/PID/cmdline"
            )
            right = (
                f'write {variable}=THE VALUE into {ENV_FILE} (mode 0600), env_file = "{ENV_FILE}", '
                f"and command = {toml_list(corrected)}"
            )
            out.append(CommandProblem(wrong, right, tuple(corrected), "warning"))
    if any(one.written == "--config" and len(one.words) == 1 for one in command.options):
        wrong = "vLLM ignores --config=FILE"
        out.append(CommandProblem(wrong, 'write "--config", "FILE"', (), "warning"))
    return out + lost_doors(command)


def lost_doors(command: Command) -> list[CommandProblem]:
    """TLS or a unix socket at the engine: its door and its probes get no answer there."""
    out = []
    tls = [f"--{name}" for name in _TLS if command.has(name)]
    if tls:
        wrong = f"{', '.join(tls)}: vLLM speaks TLS on its own port, its door and probes do not"
        right = 'take it out; [gateway] certificate = "/PATH.pem" makes the doors speak TLS'
        out.append(CommandProblem(wrong, right, (), "warning"))
    if command.has("uds"):
        wrong = "--uds: vLLM listens on that socket only, its door and probes get no answer"
        out.append(CommandProblem(wrong, "take it out: the door is the way in", (), "warning"))
    return out


def names_of(backend: BackendSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(served names, LoRA names) as the operator has them: --served-model-name in its order, then
    ``models`` beyond them, then a model's own name where ``models`` or a short name would hide it.
    () for a model that goes by its own name.
    """
    command = spoken(backend)
    loras = lora_names(command)
    model = model_of(backend.command, backend.vllm.config_words)
    flagged = command.values("served-model-name")
    listed = [name for name in backend.models if name not in loras]
    own = [] if flagged or not model else [model]
    short = [short_name(model)] if own and not listed and short_name(model) else []
    names = tuple(dict.fromkeys((*flagged, *listed, *short, *own)))
    return (() if names == (model,) else names), loras


def served(backend: BackendSettings) -> tuple[str, ...]:
    """Names that the base model answers to, the first one is in its answers."""
    model = model_of(backend.command, backend.vllm.config_words)
    names = backend.vllm.served_names or ((model,) if model else backend.models)
    return tuple(dict.fromkeys((*names, *backend.served_also)))


def named(backend: BackendSettings) -> tuple[str, ...]:
    """The command with every name the model shall answer to."""
    command = read(backend.command)
    flagged = command.values("served-model-name")
    names = served(backend)
    own = model_of(backend.command, backend.vllm.config_words)
    if names == flagged or (not flagged and names == (own,)):
        return backend.command
    rest = model_first(command.without(frozenset({"served-model-name"})))
    return (*rest, "--served-model-name", *names)
