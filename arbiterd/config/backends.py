"""Backend tables to BackendSettings: defaults of the kind, a mode's overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from arbiterd.config.batching import read_batching
from arbiterd.config.parse import KeyPath, Report, suggestion
from arbiterd.config.remote_paths import remote
from arbiterd.config.sandbox import read_sandbox
from arbiterd.config.schema import (
    KIND_BY_NAME,
    KIND_TABLES,
    NAME,
    BackendTable,
    GenericTable,
    OllamaTable,
    TensorflowTable,
    VllmTable,
    key_names,
)
from arbiterd.config.vllm_config import config_of
from arbiterd.engines.vllm_rules import names_of
from arbiterd.model.settings import (
    BackendSettings,
    Batching,
    Kind,
    OllamaOptions,
    TensorflowOptions,
    VllmOptions,
)

ENGINE_PORT_OFFSET = 10000
_PLACE = ("gpu", "memory")  # keys of a mode's entry beside the backend's own


class Defaults(NamedTuple):
    """What a kind has where the file says nothing."""

    command: tuple[str, ...]
    port: int
    priority: int
    start_timeout_s: float
    stuck_after_s: float
    request_timeout_s: float | None
    grpc_port: int = 0


DEFAULTS: Mapping[Kind, Defaults] = {
    Kind.VLLM: Defaults((), 8000, 30, 1200.0, 30.0, None),
    Kind.TENSORFLOW: Defaults(
        ("tensorflow_model_server",), 8501, 20, 300.0, 60.0, 30.0, grpc_port=8500
    ),
    Kind.OLLAMA: Defaults(("ollama", "serve"), 11434, 10, 120.0, 60.0, None),
    Kind.GENERIC: Defaults((), 0, 10, 300.0, 60.0, None),
}


def kind_of(name: str, table: Mapping[str, Any], report: Report) -> Kind | None:
    """The kind of a backend: by name, or its ``kind``. None when it cannot be told."""
    path = ("backends", name)
    if not NAME.fullmatch(name):
        report.add(path, f"{name!r} is no backend name", "use a-z, 0-9, - and _, at most 40")
    given = table.get("kind", KIND_BY_NAME.get(name, ""))
    if isinstance(given, str) and given in KIND_TABLES:
        return Kind(given)
    kinds = ", ".join(KIND_TABLES)
    if not given:
        guess = _guess(name, table)
        report.add(path, "has no kind", f"write kind = {guess or f'one of {kinds}'}")
    else:
        near = suggestion(str(given), tuple(KIND_TABLES))
        report.bad((*path, "kind"), f"{given!r} is no kind", near)
    return None


def _guess(name: str, table: Mapping[str, Any]) -> str:
    """The kind that its program or its name speaks of, quoted; "" for none."""
    command = table.get("command")
    words = [str(one) for one in command] if isinstance(command, list) else []
    text = " ".join((*words[:2], str(table.get("image", "")), name)).lower()
    signs = {"vllm": "vllm", "ollama": "ollama", "tensorflow": "tensorflow-serving"}
    return next((f'"{kind}"' for sign, kind in signs.items() if sign in text), "")


def read(
    name: str,
    kind: Kind,
    raw: Mapping[str, Any],
    at: KeyPath,
    report: Report,
    only: frozenset[str] | None = None,
    request_timeout_s: float = 900.0,
) -> BackendSettings:
    """One backend; a value that cannot be read is reported and its default taken, so that the others
    are judged all the same. ``at``: the table in the file; ``only``: report problems of these keys
    alone (a mode's overrides; the rest was reported at the backend itself).
    """
    table_type = KIND_TABLES[kind.value]
    given = dict(raw)
    try:
        table = table_type.model_validate(given)
    except ValidationError as error:
        keys = key_names(table_type)
        _report(error, (*_PLACE, *keys) if only is not None else keys, at, report, only)
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        table = table_type.model_validate({k: v for k, v in given.items() if k not in bad})
    heard = report if only is None or "models" in only else None
    models = _models(kind, table.models, at, heard)
    batching = None
    if isinstance(table, TensorflowTable):
        heard = report if only is None or "batching" in only else None
        batching = read_batching(table.batching, at, heard)
    heard = report if only is None or "sandbox" in only else None
    box = read_sandbox(table.sandbox, at, heard)
    made = _made(name, kind, table, models, batching, request_timeout_s)
    return replace(made, sandbox=box)


def read_any(raw: Mapping[str, Any], at: KeyPath, report: Report) -> None:
    """A backend of which the kind cannot be told: every key by whichever kind has it."""
    everything = tuple(dict.fromkeys(k for one in KIND_TABLES.values() for k in key_names(one)))
    for key, value in raw.items():
        if key in ("kind", *(_PLACE if at[0] == "modes" else ())):
            continue
        owner = next((one for one in KIND_TABLES.values() if key in key_names(one)), None)
        if owner is None:
            report.nearest((*at, key), key, everything, "key")
            continue
        try:
            owner.model_validate({key: value})
        except ValidationError as error:
            report.invalid(error, at)


def _made(
    name: str,
    kind: Kind,
    table: BackendTable,
    models: tuple[tuple[str, ...], dict[str, str]],
    batching: Batching | None,
    request_timeout_s: float,
) -> BackendSettings:
    """The table with the defaults of its kind."""
    given = DEFAULTS[kind]
    port = table.port or given.port
    grpc = (table.grpc_port or given.grpc_port) if isinstance(table, TensorflowTable) else 0
    command = _command(table, given, models[0])
    default_timeout = given.request_timeout_s or request_timeout_s
    made = BackendSettings(
        name=name,
        kind=kind,
        command=command,
        port=port,
        engine_port=table.engine_port or _twin(port),
        grpc_port=grpc,
        engine_grpc_port=_twin(grpc),
        image=table.image,
        container=table.container,
        volumes=tuple(table.volumes),
        health=table.health if isinstance(table, GenericTable) else "",
        restart_delay_s=table.restart_delay,
        restart_delay_max_s=table.restart_delay_max,
        user=table.user,
        priority=given.priority if table.priority is None else table.priority,
        models=models[0],
        model_paths=models[1],
        max_in_flight=table.max_in_flight,
        max_queue=table.max_queue,
        queue_timeout_s=table.queue_timeout,
        request_timeout_s=table.request_timeout or default_timeout,
        start_timeout_s=table.start_timeout or given.start_timeout_s,
        drain_timeout_s=table.drain_timeout,
        stuck_after_s=table.stuck_after or given.stuck_after_s,
        on_oom=table.on_oom,
        device_id=table.device_id,
        version=table.version,
        env=table.env,
        env_file=table.env_file,
        secrets=tuple(table.secrets),
        canary=table.canary if isinstance(table, TensorflowTable) else "",
        allow_admin_paths=tuple(table.allow_admin_paths),
        device_wall=table.device_wall,
        vllm=_vllm(table),
        ollama=_ollama(table),
        tensorflow=_tensorflow(table, batching),
    )
    return replace(made, vllm=_spoken(made)) if kind is Kind.VLLM else made


def _command(table: BackendTable, given: Defaults, models: tuple[str, ...]) -> tuple[str, ...]:
    """What runs. Within an image flags alone follow the kind's own program, and a vLLM's model may be
    named by ``models`` instead.
    """
    if table.command is None:
        if table.image and isinstance(table, VllmTable) and models:
            return "vllm", "serve", models[0]
        return given.command
    if table.image and table.command and table.command[0].startswith("-"):
        return (*given.command, *table.command)
    return tuple(table.command)


def _report(
    error: ValidationError,
    known: Sequence[str],
    at: KeyPath,
    report: Report,
    only: frozenset[str] | None,
) -> None:
    """A key of another kind is named as such; the rest as pydantic says."""
    for detail in error.errors():
        key = str(detail["loc"][0])
        if only is not None and key not in only:
            continue
        owner = _owner(key) if detail["type"] == "extra_forbidden" else ""
        if owner:
            report.add((*at, key), f"{key} is a key of {owner} backends", "take it out")
        else:
            report.detail(detail, at, known)


def _owner(key: str) -> str:
    return next((kind for kind, table in KIND_TABLES.items() if key in key_names(table)), "")


def _twin(port: int) -> int:
    """The engine's own port behind the gateway: public + 10000, below when that is no port."""
    if not port:
        return 0
    above = port + ENGINE_PORT_OFFSET
    return above if above < 65536 else port - ENGINE_PORT_OFFSET


def _models(
    kind: Kind, given: object, at: KeyPath, report: Report | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """(names, paths): a list of names, or for TensorFlow a table of name = path."""
    if given is None:
        return (), {}
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return tuple(given), {}
    if kind is Kind.TENSORFLOW and isinstance(given, dict):
        paths = {name: path for name, path in given.items() if isinstance(path, str)}
        for name, path in given.items():
            if report and not (isinstance(path, str) and path.startswith("/")):
                where = (*at, "models", str(name))
                wrong, right = "is no absolute path", "write it in full"
                if isinstance(path, str) and remote(path):
                    wrong, right = (
                        "lies on another host",
                        "copy it here: its unit reaches loopback only",
                    )
                report.bad(where, f"{path!r} {wrong}", right)
        return tuple(paths), paths
    right = (
        'write models = { resnet50 = "/srv/models/resnet50" }'
        if kind is Kind.TENSORFLOW
        else ('write models = ["NAME", ...]')
    )
    if report:
        report.bad((*at, "models"), f"{given!r} is no list of models", right)
    return (), {}


def _vllm(table: BackendTable) -> VllmOptions:
    if not isinstance(table, VllmTable):
        return VllmOptions()
    return VllmOptions(table.max_model_len, table.max_num_seqs, table.sleep)


def _ollama(table: BackendTable) -> OllamaOptions:
    if not isinstance(table, OllamaTable):
        return OllamaOptions()
    return OllamaOptions(
        table.max_loaded_models, table.parallel, table.keep_alive, table.context_length
    )


def _tensorflow(table: BackendTable, batching: Batching | None) -> TensorflowOptions:
    if not isinstance(table, TensorflowTable):
        return TensorflowOptions()
    return TensorflowOptions(table.memory_growth, batching)


def _spoken(backend: BackendSettings) -> VllmOptions:
    """vLLM's options with what its command and its own ``--config`` file say."""
    config = config_of(backend)
    words = config.words if config else ()
    whole = replace(backend, vllm=replace(backend.vllm, config_words=words))
    served, loras = names_of(whole)
    return replace(whole.vllm, served_names=served, lora_names=loras)
