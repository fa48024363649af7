"""``arbiterctl incidents``: what went wrong, newest first."""

from __future__ import annotations

import typer

from arbiterd.cli.client import segment
from arbiterd.cli.common import console, globals_of, polite, print_json
from arbiterd.cli.show import as_row, line, rows


def incidents(
    context: typer.Context,
    limit: int = typer.Option(20, min=1, max=200, help="how many, newest first"),
    backend: str = typer.Option("", help="only this backend's"),
) -> None:
    """List incidents, newest first.

    Examples: arbiterctl incidents --limit 5 · arbiterctl incidents --backend vllm
    """
    own = globals_of(context)
    query = f"?limit={limit}" + (f"&backend={segment(backend)}" if backend else "")
    with polite():
        body = own.client().get(f"/v1/incidents{query}")
    if own.json:
        print_json(body)
        return
    found = rows(as_row(body).get("incidents"))
    out = console()
    for incident in found:
        out.print(line(incident))
    if not found:
        out.print("no incidents")
