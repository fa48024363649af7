"""Backend tables to BackendSettings: defaults of the kind, a mode's overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from arbiterd.config.parse import KeyPath, Report, suggestion
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
from arbiterd.model.settings import (
    BackendSettings,
    Batching,
    Kind,
    OllamaOptions,
    TensorflowOptions,
    VllmOptions,
)

ENGINE_PORT_OFFSET = 10000


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
    """The kind of a backend: by name, or its ``kind``."""
    path = ("backends", name)
    if not NAME.fullmatch(name):
        report.add(path, f"{name!r} is no backend name", "use a-z, 0-9, - and _, at most 40")
        return None
    given = table.get("kind", KIND_BY_NAME.get(name, ""))
    if given in KIND_TABLES:
        return Kind(given)
    kinds = ", ".join(KIND_TABLES)
    if not given:
        report.add(path, "has no kind", f"write kind = one of {kinds}")
    else:
        near = suggestion(str(given), tuple(KIND_TABLES))
        report.add((*path, "kind"), f"{given!r} is no kind", near)
    return None


def read(
    name: str,
    kind: Kind,
    raw: Mapping[str, Any],
    at: KeyPath,
    report: Report,
    only: frozenset[str] | None = None,
    request_timeout_s: float = 900.0,
) -> BackendSettings | None:
    """One backend. ``at``: the table in the file; ``only``: report problems of these keys alone
    (a mode's overrides; the rest was reported at the backend itself).
    """
    table_type = KIND_TABLES[kind.value]
    try:
        table = table_type.model_validate(dict(raw))
    except ValidationError as error:
        _report(error, table_type, at, report, only)
        return None
    quiet = only is not None and "models" not in only
    models = _models(kind, table.models, at, None if quiet else report)
    if models is None:
        return None
    return _made(name, kind, table, models, request_timeout_s)


def _made(
    name: str,
    kind: Kind,
    table: BackendTable,
    models: tuple[tuple[str, ...], dict[str, str]],
    request_timeout_s: float,
) -> BackendSettings:
    """The table with the defaults of its kind."""
    given = DEFAULTS[kind]
    port = table.port or given.port
    grpc = (table.grpc_port or given.grpc_port) if isinstance(table, TensorflowTable) else 0
    command = _command(table, given, models[0])
    default_timeout = given.request_timeout_s or request_timeout_s
    return BackendSettings(
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
        canary=table.canary if isinstance(table, TensorflowTable) else "",
        allow_admin_paths=tuple(table.allow_admin_paths),
        vllm=_vllm(table),
        ollama=_ollama(table),
        tensorflow=_tensorflow(table),
    )


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
    table: type[BackendTable],
    at: KeyPath,
    report: Report,
    only: frozenset[str] | None,
) -> None:
    """A key of another kind is named as such; the rest as pydantic says."""
    before = len(report.problems)
    for detail in error.errors():
        key = str(detail["loc"][0])
        if only is not None and key not in only:
            continue
        owner = _owner(key) if detail["type"] == "extra_forbidden" else ""
        if owner:
            report.add((*at, key), f"{key} is a key of {owner} backends", "take it out")
    handled = {p.key for p in report.problems[before:]}
    rest = [
        d
        for d in error.errors()
        if ".".join((*at, str(d["loc"][0]))) not in handled
        and (only is None or str(d["loc"][0]) in only)
    ]
    for detail in rest:
        report._detail(detail, at, table)  # noqa: SLF001 - the same rule for one of them


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
) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """(names, paths): a list of names, or for TensorFlow a table of name = path."""
    if given is None:
        return (), {}
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return tuple(given), {}
    table = isinstance(given, dict) and all(isinstance(one, str) for one in given.values())
    if table and kind is Kind.TENSORFLOW and isinstance(given, dict):
        relative = [path for path in given.values() if not path.startswith("/")]
        for path in relative:
            if report is None:
                break
            report.add((*at, "models"), f"{path!r} is no absolute path", "write it in full")
        return None if relative else (tuple(given), dict(given))
    right = (
        'write models = { resnet50 = "/srv/models/resnet50" }'
        if kind is Kind.TENSORFLOW
        else ('write models = ["NAME", ...]')
    )
    if report:
        report.add((*at, "models"), f"{given!r} is no list of models", right)
    return None


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


def _tensorflow(table: BackendTable) -> TensorflowOptions:
    if not isinstance(table, TensorflowTable):
        return TensorflowOptions()
    batching = table.batching
    made = Batching(batching.max_batch_size, batching.max_enqueued_batches) if batching else None
    return TensorflowOptions(table.memory_growth, made)
