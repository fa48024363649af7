"""``batching`` of a TensorFlow Serving backend: a table, or the path of the operator's own file."""

from __future__ import annotations

from pydantic import ValidationError

from arbiterd.config.parse import KeyPath, Report
from arbiterd.config.schema import key_names, settings_of, table_of
from arbiterd.engines.batching import contradictions, parse
from arbiterd.files import bounded
from arbiterd.model.engine_options import Batching


def read_batching(given: object, at: KeyPath, report: Report | None) -> Batching | None:
    """The parameters, None when batching is off. ``report`` None: its problems are told already."""
    path = (*at, "batching")
    if given is None:
        return None
    if isinstance(given, str):
        return _file(given, path, report)
    if not isinstance(given, dict):
        if report:
            right = "write batching = { max_batch_size = 32 }, or the path of your own file"
            report.bad(path, f"{given!r} is neither a table nor a path", right)
        return Batching()
    kind = table_of(Batching)
    try:
        table = kind.model_validate(given)
    except ValidationError as error:
        if report:
            report.invalid(error, path, key_names(kind))
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        table = kind.model_validate({k: v for k, v in given.items() if k not in bad})
    made = settings_of(Batching, table)
    for key, wrong, right in contradictions(made) if report else ():
        sizes = ("max_batch_size", "max_execution_batch_size", "enable_large_batch_splitting")
        if report and not any(report.broken(*path, one) for one in (key, *sizes)):
            report.add((*path, key), wrong, right)
    return made


def _file(name: str, path: KeyPath, report: Report | None) -> Batching:
    """The operator's own file, each of its problems with its line."""
    wrong, right, made = "", "", Batching()
    try:
        text = bounded.regular(name, bounded.FILE_BYTES).decode() if name.startswith("/") else ""
    except OSError as error:
        wrong, right = f"{name} cannot be read: {error.strerror}", "name a file that can be read"
    except UnicodeDecodeError:
        wrong, right = f"{name} cannot be read: it is not UTF-8", "write it in UTF-8"
    else:
        if not name.startswith("/"):
            wrong, right = f"{name!r} is no absolute path", "write it in full"
        made, faults = parse(text)
        for fault in faults if report else ():
            if report:
                report.add(path, f"{name} line {fault.line}: {fault.wrong}", fault.right)
        for key, what, instead in contradictions(made):
            if report:
                report.add(path, f"{name}: {key} {what}", instead)
    if wrong and report:
        report.bad(path, wrong, right)
    return made
