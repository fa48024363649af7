"""What others rely on, as sorted lines: ``KEY: what is promised of it``. One function a surface, in SURFACES.

The words for types are this file's own, so that the lines stay when the code that is asked changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from aiohttp import web

from arbiterd import errors
from arbiterd.config.backends import _PLACE
from arbiterd.config.schema import FileSettings
from arbiterd.model.actions import Verb
from arbiterd.model.backend import Phase
from arbiterd.model.engine_options import Batching
from arbiterd.model.events import EventName, Severity
from arbiterd.model.keys import Form, Setting, keys_of
from arbiterd.model.published import Published
from arbiterd.model.sandbox import SandboxSettings
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.report.api import common, ladder, route, status
from arbiterd.report.catalogue import message_id
from arbiterd.report.metrics import exposition
from arbiterd.report.metrics.counters import Counts
from arbiterd.settings.reload import ReloadAnswer
from arbiterd.web.admin import Admin
from arbiterd.web.openapi import document
from tests.golden.worlds import worlds

# -- the configuration -----------------------------------------------------------------------------
_WORDS = {
    Form.SIZE_OR_AUTO: "number",
    Form.ADDRESS: "text",
    Form.LISTEN: "text",
    Form.FILE: "text",
    Form.FILE_OR_NONE: "text",
    Form.COUNTS: "list of count from 1",
    Form.READ_APART: "anything",
}
_PLAIN = {str: "text", bool: "yes or no", Any: "anything"}


def config_keys() -> Iterator[str]:
    """Every ``table.key``, its type and its default."""
    for name, keys in _tables():
        for one in keys:
            default = "required" if one.default is ... else f"default {_json(one.default)}"
            yield f"{name}{one.name}: {_kind(one)}, {default}"
    for key in _PLACE:
        yield f"modes.<mode>.<backend>.{key}: text or number"


def _tables() -> Iterator[tuple[str, Sequence[Setting]]]:
    whole = keys_of(FileSettings)
    tables = {
        one.name: next(filter(is_dataclass, (one.type, *get_args(one.type))), None) for one in whole
    }
    yield "", [one for one in whole if tables[one.name] is None]
    yield from ((f"{name}.", keys_of(table)) for name, table in tables.items() if table is not None)
    yield from ((f"backends.<{kind}>.", keys_of(BackendSettings, kind)) for kind in Kind)
    yield "backends.<any>.sandbox.", keys_of(SandboxSettings)
    yield "backends.<tensorflow-serving>.batching.", keys_of(Batching)


def _kind(one: Setting) -> str:
    return _hint(one.type) if one.form is None else _WORDS.get(one.form, one.form.value)


def _hint(hint: Any) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(_json(one) for one in inner)
    if NoneType in inner:
        return " or ".join(_hint(one) for one in inner if one is not NoneType)
    return f"table of {_hint(inner[-1])}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- the API ---------------------------------------------------------------------------------------
_NAMES = {"evidence", "used_by", "brakes", "braked", "env", "canaries", "phases"}


def api() -> Iterator[str]:
    """Paths with their parameters and answers, and every key of the documents with its types."""
    for path, verbs in document()["paths"].items():
        for verb, told in verbs.items():
            asks = ",".join(sorted(one["name"] for one in told.get("parameters", ())))
            yield f"{verb.upper()} {path}: asks [{asks}], answers [{','.join(sorted(told['responses']))}]"
    app = web.Application()
    Admin(submit=lambda _: None, reload=lambda: ReloadAnswer(accepted=True, mode="A")).add_to(app)
    for one in app.router.routes():
        yield f"{one.method} {one.resource.canonical if one.resource else ''}: for operators"
    found: dict[str, set[str]] = {}
    for seen in worlds():
        for path, body in _documents(seen):
            _shape(body, path, found, _keyed(seen))
    yield from (f"{path}: {' or '.join(sorted(kinds))}" for path, kinds in found.items())


def _documents(seen: Published) -> Iterator[tuple[str, object]]:
    yield "/v1/status", status.status(seen, "host")
    yield "/v1/gpus", {"gpus": status.gpus(seen)}
    yield "/v1/backends", {"backends": status.backends(seen, "host")}
    yield "/v1/incidents", {"incidents": [common.incident(one) for one in seen.decision.incidents]}
    yield "/v1/caps", {"caps": ladder.caps(seen)}
    for name, view in seen.decision.backends.items():
        yield "/v1/backends/{name}", status.backend(seen, view, "host")
        yield "/v1/backends/{name}/ready", status.ready(view)
        yield "/v1/route", route.by_backend(seen, name, "host").body()
    for model in ("M", "qwen2.5:3b", "m", "none"):
        yield "/v1/route", route.by_model(seen, model, "host").body()


def _keyed(seen: Published) -> set[str]:
    """Names of this host, which are no keys."""
    return {*seen.decision.backends, *seen.decision.devices, *seen.settings.modes}


def _shape(value: object, path: str, found: dict[str, set[str]], names: set[str]) -> None:
    kind = {
        dict: "object",
        list: "list",
        str: "text",
        bool: "yes or no",
        int: "number",
        float: "number",
    }
    found.setdefault(path, set()).add("null" if value is None else kind[type(value)])
    if isinstance(value, Mapping):
        free = path.rpartition(".")[2] in _NAMES
        for key, one in value.items():
            _shape(one, f"{path}.{'*' if free or key in names else key}", found, names)
    elif isinstance(value, list):
        for one in value:
            _shape(one, f"{path}[]", found, names)


# -- metrics ---------------------------------------------------------------------------------------
def metric_names() -> Iterator[str]:
    """Every family with its type and its labels."""
    for seen in worlds():
        for one in (*exposition.families(seen, _counts(seen)), exposition.age(seen)):
            name = f"{one.name}_total" if one.type == "counter" else one.name
            names = getattr(one, "_labelnames", ())
            yield f"{name}: {one.type}, labels [{','.join(sorted(names))}]"


def _counts(seen: Published) -> Counts:
    counts = Counts()
    counts.add(seen.decision.events)
    return counts


# -- the rest --------------------------------------------------------------------------------------
def events() -> Iterator[str]:
    """Names of journal events with their MESSAGE_ID; severities; phases; what operators may ask for."""
    for name in EventName:
        yield f"event {name.value}: {message_id(name)}"
    yield f"severities: {' '.join(one.value for one in Severity)}"
    yield f"phases: {' '.join(one.value for one in Phase)}"
    yield f"verbs: {' '.join(one.value for one in Verb)}"


def exits() -> Iterator[str]:
    """Exit statuses by their meaning (test_golden.py plays them)."""
    for name, value in vars(errors).items():
        if name.startswith("EX_"):
            yield f"{name}: {value}"


SURFACES: Mapping[str, Callable[[], Iterator[str]]] = {
    "config": config_keys,
    "api": api,
    "metrics": metric_names,
    "events": events,
    "exits": exits,
}


def lines(surface: str) -> list[str]:
    """Of one surface, as its file has them."""
    return sorted(set(SURFACES[surface]()))
