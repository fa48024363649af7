"""``arbiterctl status``, ``incidents`` and ``why``: what the daemon knows, in words."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arbiterd.cli.client import Json, segment
from arbiterd.cli.common import console, globals_of, polite, print_json
from arbiterd.units import format_duration, format_size

Row: TypeAlias = "dict[str, Json]"
_COLOURS = {
    "ready": "green",
    "starting": "cyan",
    "waiting": "cyan",
    "failed": "red",
    "backoff": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
}


def status(context: typer.Context) -> None:
    """Show mode, GPUs with their ledgers, backends and open incidents.

    Examples: arbiterctl status · arbiterctl status --json | jq .backends
    """
    own = globals_of(context)
    with polite():
        body = own.client().get("/v1/status")
    if own.json:
        print_json(body)
        return
    found = as_row(body)
    out = console()
    _head(out, found)
    for gpu in rows(found.get("gpus")):
        _gpu(out, gpu)
    _backends(out, rows(found.get("backends")))
    for incident in rows(found.get("incidents_open")):
        out.print(f"[red]open[/red] {line(incident)}")


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


def why(
    context: typer.Context,
    what: str = typer.Argument(help="a backend's name or an incident's id"),
) -> None:
    """Tell the story of a backend or an incident: state, reason, evidence, actions.

    Examples: arbiterctl why vllm · arbiterctl why inc-3f2a1b-7
    """
    own = globals_of(context)
    with polite():
        client = own.client()
        everything = rows(as_row(client.get("/v1/incidents?limit=200")).get("incidents"))
        one = [incident for incident in everything if incident.get("id") == what]
        backend = None if one else as_row(client.get(f"/v1/backends/{segment(what)}"))
    chosen = one or [incident for incident in everything if incident.get("backend") == what][:5]
    if own.json:
        print_json({"backend": backend, "incidents": list(chosen)})
        return
    out = console()
    if backend is not None:
        _backends(out, [backend])
    for incident in chosen:
        _story(out, incident)
    if not chosen:
        out.print("no incidents about it")


def _head(out: Console, found: Row) -> None:
    loop = as_row(found.get("loop"))
    config = as_row(found.get("config"))
    dry = " [yellow]dry run[/yellow]" if found.get("dry_run") else ""
    out.print(
        f"[bold]gpu-arbiter {found.get('version')}[/bold]  mode [bold]{found.get('mode')}[/bold]"
        f" ({found.get('sharing')}){dry}  tick {loop.get('tick')}, "
        f"{loop.get('last_tick_ms')} ms  {escape(str(config.get('path')))}"
    )
    if loop.get("blind"):
        out.print("[red]blind: at least one GPU cannot be read; nothing is started or killed[/red]")
    for note in _texts(found.get("notes")):
        out.print(f"[yellow]{escape(note)}[/yellow]")
    for problem in _texts(found.get("config_refused")):
        out.print(f"[red]refused: {escape(problem)}[/red]")
    switch = as_row(found.get("switch"))
    if switch:
        out.print(f"[yellow]{escape(str(switch.get('line')))}[/yellow]")
        if switch.get("rolling_back"):
            out.print(f"[red]because {escape(str(switch.get('rolling_back')))}[/red]")
    if found.get("config_pending"):
        out.print("[yellow]config changed, not applied: systemctl reload gpu-arbiter[/yellow]")


def _gpu(out: Console, gpu: Row) -> None:
    memory = as_row(gpu.get("memory"))
    free = number(memory.get("free"))
    total = number(memory.get("total"))
    text = f"{format_size(free)} of {format_size(total)} free" if memory else "memory unknown"
    out.print(
        f"\nGPU {gpu.get('index')} {escape(str(gpu.get('name')))}: {gpu.get('state')}, "
        f"{text}, pressure {gpu.get('pressure')}"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("  holder", "cap", "booked", "used", "pids"):
        justify = "left" if title in ("  holder", "pids") else "right"
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for entry in rows(gpu.get("ledger")):
        cells = [_size(entry.get(key)) for key in ("cap", "booked", "used")]
        pids = entry.get("pids")
        shown = " ".join(str(pid) for pid in pids) if isinstance(pids, list) else ""
        table.add_row(f"  {escape(str(entry.get('holder')))}", *cells, shown)
    out.print(table)


def _backends(out: Console, found: list[Row]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("backend", "phase", "takes work", "used", "cap", "restarts", "since", "why"):
        table.add_column(title)
    for row in found:
        phase = str(row.get("phase"))
        colour = _COLOURS.get(phase, "white")
        takes = "yes" if row.get("accepting") else f"no, retry in {row.get('retry_after_s')} s"
        table.add_row(
            escape(str(row.get("name"))),
            f"[{colour}]{phase}[/{colour}]",
            takes,
            _size(row.get("used_bytes")),
            _size(row.get("cap_bytes")),
            str(row.get("restarts")),
            _ago(row.get("since")),
            escape(str(row.get("reason") or "")),
        )
    out.print()
    out.print(table)


def _story(out: Console, incident: Row) -> None:
    out.print(f"\n{line(incident)}")
    for key, value in as_row(incident.get("evidence")).items():
        if value:
            out.print(f"  evidence {escape(key)}: {escape(str(value))}")
    for action in rows(incident.get("actions")):
        took = action.get("took_ms")
        after = f" after {format_duration(number(took) / 1000)}" if took is not None else ""
        out.print(
            f"  {action.get('action')} {escape(str(action.get('target')))}: "
            f"{escape(str(action.get('reason')))} → "
            f"{escape(str(action.get('outcome') or 'under way'))}{after}"
        )


def line(incident: Row) -> str:
    """One incident in one line."""
    closed = incident.get("closed_at")
    state = f"closed {closed}" if closed else "open"
    return (
        f"{incident.get('opened_at')} {incident.get('id')} {incident.get('event')} "
        f"[{incident.get('severity')}] {escape(str(incident.get('summary')))} ({state})"
    ).replace(f"[{incident.get('severity')}]", f"({incident.get('severity')})")


def rows(value: Json) -> list[Row]:
    """A list of objects, whatever came."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def as_row(value: Json) -> Row:
    """An object, whatever came."""
    return value if isinstance(value, dict) else {}


def number(value: Json) -> float:
    """A number, whatever came."""
    return float(value) if isinstance(value, int | float) else 0.0


def _texts(value: Json) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _size(value: Json) -> str:
    return format_size(value) if isinstance(value, int | float) else "-"


def _ago(value: Json) -> str:
    try:
        then = datetime.fromisoformat(str(value))
    except ValueError:
        return ""
    return format_duration(max(0.0, datetime.now(then.tzinfo).timestamp() - then.timestamp()))
