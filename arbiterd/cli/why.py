"""``arbiterctl why``: the story of a backend, a GPU or an incident, with its numbers."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from arbiterd.cli.client import Json
from arbiterd.cli.common import console, globals_of, polite, print_json
from arbiterd.cli.show import Row, as_row, backends, line, number, rows, texts
from arbiterd.errors import ArbiterError
from arbiterd.quantities import format_duration, format_size

_SHOWN = 5  # of its last incidents


def why(
    context: typer.Context,
    what: str = typer.Argument(help="a backend's name, gpu0 or a GPU's uuid, or an incident's id"),
) -> None:
    """Tell the story of a backend, a GPU or an incident: state, numbers, evidence, actions.

    A backend's story has its device's: who holds what, who could give memory back, what is done.

    Examples: arbiterctl why vllm · arbiterctl why gpu0 · arbiterctl why inc-3f2a1b-42-1
    """
    own = globals_of(context)
    with polite():
        client = own.client()
        everything = rows(as_row(client.get("/v1/incidents?limit=200")).get("incidents"))
        chosen = [incident for incident in everything if incident.get("id") == what]
        backend: Row | None = None
        gpus: list[Row] = []
        if not chosen:
            backend, gpus = _find(as_row(client.get("/v1/status")), what)
            chosen = _about(everything, backend, gpus)
    if own.json:
        found: dict[str, Json] = {"backend": backend, "gpus": list(gpus), "incidents": list(chosen)}
        print_json(found)
        return
    out = console()
    if backend is not None:
        backends(out, [backend])
        _canaries(out, as_row(backend.get("canaries")))
    for gpu in gpus:
        _pressure(out, gpu)
    for incident in chosen:
        _story(out, incident)
    if not chosen:
        out.print("no incidents about it")


def _find(status: Row, what: str) -> tuple[Row | None, list[Row]]:
    """(the backend of that name, its GPUs), or (None, the GPU meant).

    Raises:
        ArbiterError: there is neither.

    """
    known, every = rows(status.get("backends")), rows(status.get("gpus"))
    backend = next((one for one in known if one.get("name") == what), None)
    if backend is not None:
        where = texts(backend.get("gpu"))
        return backend, [gpu for gpu in every if gpu.get("uuid") in where]
    found = [gpu for gpu in every if what in (gpu.get("uuid"), _short(gpu))]
    if found:
        return None, found
    names = [str(one.get("name")) for one in known]
    gpus = [_short(gpu) for gpu in every]
    msg = (
        f"there is no backend, GPU or incident {what!r}; there is {', '.join([*names, *gpus])}; "
        "incidents: arbiterctl incidents"
    )
    raise ArbiterError(msg)


def _short(gpu: Row) -> str:
    """gpu0; a slice goes by its uuid only."""
    return str(gpu.get("uuid")) if gpu.get("parent") else f"gpu{gpu.get('index')}"


def _about(everything: list[Row], backend: Row | None, gpus: list[Row]) -> list[Row]:
    """A backend's own incidents, or a GPU's; the open ones of a backend's GPUs as well."""
    uuids = [gpu.get("uuid") for gpu in gpus]
    if backend is None:
        return [one for one in everything if one.get("gpu") in uuids][:_SHOWN]
    name = backend.get("name")
    here = [
        one
        for one in everything
        if not one.get("backend") and one.get("gpu") in uuids and not one.get("closed_at")
    ]
    return here + [one for one in everything if one.get("backend") == name][:_SHOWN]


def _canaries(out: Console, canaries: Row) -> None:
    for model, found in canaries.items():
        text = "canary kept; it is sent only when requests get no answer for stuck_after"
        if found != "kept":
            text = f"no canary ({found}): a hang of this model alone is told, and not mended"
        out.print(f"  {escape(f'{model}: {text}')}", soft_wrap=True)


def _pressure(out: Console, gpu: Row) -> None:
    ladder = as_row(gpu.get("ladder"))
    out.print(f"\nGPU {gpu.get('index')} {escape(str(gpu.get('name')))}: {gpu.get('state')}")
    for text in texts(ladder.get("why")):
        out.print(f"  {escape(text)}", soft_wrap=True)


def _story(out: Console, incident: Row) -> None:
    out.print(f"\n{line(incident)}", soft_wrap=True)
    for key, value in as_row(incident.get("evidence")).items():
        if value:
            out.print(f"  evidence {escape(key)}: {escape(str(value))}", soft_wrap=True)
    for action in rows(incident.get("actions")):
        out.print(f"  {escape(_action(action))}", soft_wrap=True)


def _action(action: Row) -> str:
    """'Reclaim trim qwen2.5:3b: reason -> done after 800 ms, 2.66 GiB expected, 2.60 GiB freed'."""
    took = action.get("took_ms")
    after = f" after {format_duration(number(took) / 1000)}" if took is not None else ""
    outcome = str(action.get("outcome") or "under way")
    text = (
        f"{action.get('action')} {action.get('target')}: {action.get('reason')} → {outcome}{after}"
    )
    if action.get("bytes_expected") is not None:
        text += f", {format_size(number(action.get('bytes_expected')))} expected"
    if action.get("bytes_freed") is not None:
        text += f", {format_size(number(action.get('bytes_freed')))} freed"
    return text
