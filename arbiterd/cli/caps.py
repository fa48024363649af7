"""``arbiterctl caps``: what OOMs have taught, and undoing it."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from arbiterd.cli.client import segment
from arbiterd.cli.common import console, globals_of, polite, print_json
from arbiterd.cli.show import Row, as_row, rows, size

_TITLES = (
    "mode",
    "backend",
    "gpu",
    "model",
    "version",
    "configured",
    "lowered by",
    "cap",
    "OOMs",
    "when",
    "applies",
    "why",
)


def caps(context: typer.Context) -> None:
    """Show the caps that out-of-memory deaths have lowered; caps reset NAME undoes it.

    A cap is lowered only when a backend has filled the card by its own growth. One row per mode,
    backend, GPU, model and engine version; half a step comes back at a start after a calm day.

    Examples: arbiterctl caps · arbiterctl caps --json · arbiterctl caps reset vllm
    """
    if context.invoked_subcommand is not None:
        return
    own = globals_of(context)
    with polite():
        body = own.client().get("/v1/caps")
    if own.json:
        print_json(body)
        return
    found = rows(as_row(body).get("caps"))
    out = console()
    if not found:
        out.print("nothing learned: every configured cap is in force")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in _TITLES:
        table.add_column(title, overflow="fold")
    for row in found:
        table.add_row(*(escape(cell) for cell in _cells(row)))
    out.print(table)


def _cells(row: Row) -> list[str]:
    gpu = row.get("index")
    return [
        str(row.get("mode")),
        str(row.get("backend")),
        str(row.get("gpu")) if gpu is None else str(gpu),
        str(row.get("model") or "-"),
        str(row.get("version") or "-"),
        size(row.get("configured_bytes")),
        size(row.get("lowered_bytes")),
        "on the CPU" if row.get("on_cpu") else size(row.get("cap_bytes")),
        str(row.get("ooms")),
        str(row.get("at"))[:19].replace("T", " "),
        "yes" if row.get("applies") else "not now",
        str(row.get("reason")),
    ]


def reset(
    context: typer.Context, name: str = typer.Argument(help="the backend, of any mode")
) -> None:
    """Forget what was learned about a backend; its configured cap is in force from its next start.

    Example: arbiterctl caps reset vllm
    """
    own = globals_of(context)
    with polite():
        body = own.client().post(f"/v1/admin/backends/{segment(name)}/reset-cap")
    if own.json:
        print_json(body)
    else:
        print(f"{name}: forgotten; its configured cap is in force from its next start")
