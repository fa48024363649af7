"""Backend tables to BackendSettings: defaults of the kind, a mode's overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from arbiterd.config.batching import read_batching
from arbiterd.config.parse import KeyPath, Report, suggestion
from arbiterd.config.remote_paths import remote
from arbiterd.config.sandbox import read_sandbox
from arbiterd.config.schema import KIND_TABLES, NAME, key_names, settings_of
from arbiterd.config.vllm_config import config_of
from arbiterd.engines import ENGINES
from arbiterd.engines.base import Defaults
from arbiterd.engines.vllm_rules import names_of
from arbiterd.model.engine_options import VllmOptions
from arbiterd.model.settings import BackendSettings, Kind

ENGINE_PORT_OFFSET = 10000
_PLACE = ("gpu", "memory")  # keys of a mode's entry beside the backend's own


KIND_BY_NAME: Mapping[str, Kind] = {
    engine.defaults.backend_name: kind
    for kind, engine in ENGINES.items()
    if engine.defaults.backend_name
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
    return next((f'"{kind}"' for sign, kind in KIND_BY_NAME.items() if sign in text), "")


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
        table: Any = table_type.model_validate(given)
    except ValidationError as error:
        keys = key_names(table_type)
        _report(error, (*_PLACE, *keys) if only is not None else keys, at, report, only)
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        table = table_type.model_validate({k: v for k, v in given.items() if k not in bad})

    def heard(key: str) -> Report | None:
        return report if only is None or key in only else None

    made = _made(
        name, kind, table, _models(kind, table.models, at, heard("models")), request_timeout_s
    )
    box = read_sandbox(table.sandbox, at, heard("sandbox"))
    if kind is Kind.TENSORFLOW:
        batching = read_batching(table.batching, at, heard("batching"))
        made = replace(made, tensorflow=replace(made.tensorflow, batching=batching))
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
    table: Any,
    models: tuple[tuple[str, ...], dict[str, str]],
    request_timeout_s: float,
) -> BackendSettings:
    """The table with the defaults of its kind. Its attributes are named as the settings' fields."""
    given = ENGINES[kind].defaults
    port = table.port or given.port
    grpc = (table.grpc_port or given.grpc_port) if kind is Kind.TENSORFLOW else 0
    made = settings_of(
        BackendSettings,
        table,
        kind.value,
        name=name,
        kind=kind,
        command=_command(table, kind, given, models[0]),
        port=port,
        engine_port=table.engine_port or _twin(port),
        grpc_port=grpc,
        engine_grpc_port=_twin(grpc),
        priority=given.priority if table.priority is None else table.priority,
        models=models[0],
        model_paths=models[1],
        request_timeout_s=table.request_timeout_s or given.request_timeout_s or request_timeout_s,
        start_timeout_s=table.start_timeout_s or given.start_timeout_s,
        stuck_after_s=table.stuck_after_s or given.stuck_after_s,
    )
    return replace(made, vllm=_spoken(made)) if kind is Kind.VLLM else made


def _command(table: Any, kind: Kind, given: Defaults, models: tuple[str, ...]) -> tuple[str, ...]:
    """What runs. Within an image flags alone follow the kind's own program, and a vLLM's model may be
    named by ``models`` instead.
    """
    if table.command is None:
        if table.image and kind is Kind.VLLM and models:
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


def _spoken(backend: BackendSettings) -> VllmOptions:
    """vLLM's options with what its command and its own ``--config`` file say."""
    config = config_of(backend)
    words = config.words if config else ()
    whole = replace(backend, vllm=replace(backend.vllm, config_words=words))
    served, loras = names_of(whole)
    return replace(whole.vllm, served_names=served, lora_names=loras)
