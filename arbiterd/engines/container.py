"""An engine in a container: its launch line wrapped into `docker run` or `podman run`.

The engine's own file renders program, flags and environment as for a plain command; this file alone
knows how a container client is told the rest. What is true of which client: docs/facts/containers.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from arbiterd.engines.base import LaunchContext
from arbiterd.engines.image import volume
from arbiterd.engines.vllm_command import model_of
from arbiterd.model.container import LABEL, Client, ContainerSpec, clients_own
from arbiterd.model.launch import LaunchSpec
from arbiterd.model.settings import BackendSettings, Kind

INSIDE_HOST: Final = "0.0.0.0"  # nosec B104 # the container's own network; only the port map reaches it

# What the engines' own documentation mounts, so that models outlive the container.
_CACHES: Final = {
    Kind.OLLAMA: ("OLLAMA_MODELS", "ollama", "/root/.ollama"),
    Kind.VLLM: ("HF_HOME", "huggingface", "/root/.cache/huggingface"),
}


def inside(context: LaunchContext) -> LaunchContext:
    """Where the engine listens within its container: everywhere in its own network."""
    return replace(context, host=INSIDE_HOST)


def wrap(context: LaunchContext, spec: LaunchSpec) -> LaunchSpec:
    """The engine's launch line as a container's. ``spec`` has its whole environment already.

    The client runs as root (or as the daemon's own user), ``user`` goes to --user. Options that
    depend on the launcher are added by it: where the cgroup lies, names of env_file's variables.
    """
    backend = context.backend
    client: Client = "podman" if context.container == "podman" else "docker"
    env = {**spec.base, **spec.env}
    if client == "podman" or not context.devices:
        # CUDA images say NVIDIA_VISIBLE_DEVICES=all, which a hook would obey beside CDI or on the CPU
        env["NVIDIA_VISIBLE_DEVICES"] = "void"
    container = ContainerSpec(
        client=client,
        name=f"gpu-arbiter-{backend.name}",
        image=backend.image,
        label=f"{LABEL}={context.files_dir}",
        cidfile=f"{context.files_dir}.{client}.cid",
    )
    entry, args = _entry(backend, spec.argv)
    argv = [
        client,
        "run",
        "--rm",
        "--init",  # PID 1 that forwards SIGTERM and reaps
        "--pull=never",  # a start waits for no registry
        f"--name={container.name}",
        f"--label={container.label}",
        f"--cidfile={container.cidfile}",
        f"--stop-timeout={round(spec.stop_grace_s)}",
        "--log-driver=none",  # output comes through the client: journal or log file
        "--security-opt=no-new-privileges",
        *(["--pids-limit=-1"] if client == "podman" else []),  # podman's own is 2048 threads
        *(["--ipc=host"] if backend.kind is Kind.VLLM else []),  # its ranks share /dev/shm
        *_devices(client, [device.uuid for device in context.devices]),
        *_ports(context),
        *_mounts(context, spec),
        *environment(env),
        *([f"--user={backend.user}"] if backend.user else []),
        *([f"--entrypoint={entry}"] if entry else []),
        backend.image,
        *args,
    ]
    passed = {k: v for k, v in env.items() if k not in spec.base and not clients_own(k)}
    return replace(
        spec,
        argv=tuple(argv),
        env=passed,
        unset=tuple(name for name in spec.unset if name not in env),
        user="root",
        container=container,
        loopback_only=False,
    )


def environment(env: dict[str, str]) -> list[str]:
    """--env by name, the value from the client's own environment: no secret stands in argv. What
    the client itself reads can only be given by value.
    """
    return [
        f"--env={name}={value}" if clients_own(name) else f"--env={name}"
        for name, value in sorted(env.items())
    ]


def _entry(backend: BackendSettings, argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """(entrypoint, arguments). A known engine's program is its command's first word, whatever the
    image would start (TensorFlow's is a bash that swallows SIGTERM); a generic image, or a command
    of flags alone, keeps the image's own.
    """
    if backend.kind is Kind.GENERIC or not argv or argv[0].startswith("-"):
        return "", argv
    return argv[0], argv[1:]


def _devices(client: Client, uuids: Sequence[str]) -> list[str]:
    """Docker's --gpus is a CSV field of its own: several devices need the quotes."""
    if client == "podman":
        return [f"--device=nvidia.com/gpu={uuid}" for uuid in uuids]
    if not uuids:
        return []
    value = f"device={','.join(uuids)}"
    return [f"--gpus={value}" if len(uuids) == 1 else f'--gpus="{value}"']


def _ports(context: LaunchContext) -> list[str]:
    """Published where the engine would listen without a container: loopback behind the gateway."""
    host = f"[{context.host}]" if ":" in context.host else context.host
    ports = [port for port in (context.port, context.grpc_port) if port]
    return [f"--publish={host}:{port}:{port}" for port in ports]


def _mounts(context: LaunchContext, spec: LaunchSpec) -> list[str]:
    """Rendered files and models read-only at their own paths, then caches, then ``volumes``."""
    backend = context.backend
    given = [found for text in backend.volumes if (found := volume(text))]
    taken = [target for _, target, _ in given]
    rows: list[tuple[str, str, bool]] = []
    if spec.files:
        rows.append((context.files_dir, context.files_dir, True))
    paths = list(backend.model_paths.values())
    if backend.kind is Kind.VLLM and (
        model := model_of(backend.command, backend.vllm.config_words)
    ).startswith("/"):
        paths.append(model)
    rows += [(path, path, True) for path in dict.fromkeys(paths) if not _within(path, taken)]
    cache = _cache(backend, taken)
    return [_mount(*row) for row in (*rows, *([cache] if cache else []), *given)]


def _cache(backend: BackendSettings, taken: Sequence[str]) -> tuple[str, str, bool] | None:
    """Where the engine keeps what it downloads: the folder its variable names, else the named volume
    of its documentation (of root's home: none for another user).
    """
    if backend.kind not in _CACHES:
        return None
    variable, name, target = _CACHES[backend.kind]
    folder = backend.env.get(variable, "")
    if folder.startswith("/"):
        return None if _within(folder, taken) else (folder, folder, False)
    if folder or _within(target, taken) or backend.user not in ("", "root", "0"):
        return None
    return name, target, False


def _within(path: str, targets: Iterable[str]) -> bool:
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in targets)


def _mount(source: str, target: str, read_only: bool) -> str:
    """--mount, not --volume: a source that is missing is an error, not a new empty folder."""
    fields = [f"type={'bind' if source.startswith('/') else 'volume'}"]
    fields += [f"src={source}", f"dst={target}"]
    if read_only:
        fields.append("ro=true")
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(fields)
    return f"--mount={out.getvalue()}"
