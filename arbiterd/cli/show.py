"""``arbiterctl status``: what the daemon knows, in words."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from arbiterd.cli.client import Json
from arbiterd.cli.common import Globals, console, polite, print_json
from arbiterd.quantities import format_duration, format_size

Row: TypeAlias = "dict[str, Json]"
_COLOURS = {
    "ready": "green",
    "starting": "cyan",
    "waiting": "cyan",
    "failed": "red",
    "backoff": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "sleeping": "blue",
}


def status(own: Globals) -> None:
    """Show mode, GPUs with their ledgers, backends and open incidents.

    Examples: arbiterctl status · arbiterctl status --json | jq .backends
    """
    with polite():
        body = own.client().get("/v1/status")
    if own.json:
        print_json(body)
        return
    print_status(console(), as_row(body))


def print_status(out: Console, found: Row) -> None:
    """Everything that /v1/status tells, for people."""
    _head(out, found)
    for gpu in rows(found.get("gpus")):
        _gpu(out, gpu)
    backends(out, rows(found.get("backends")))
    for incident in rows(found.get("incidents_open")):
        out.print(f"[red]open[/red] {line(incident)}")


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
    for note in texts(found.get("notes")):
        out.print(f"[yellow]{escape(note)}[/yellow]")
    for problem in texts(found.get("config_refused")):
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
    text = f"{_or_unknown(memory.get('free'))} of {_or_unknown(memory.get('total'))} free"
    out.print(
        f"\nGPU {gpu.get('index')} {escape(str(gpu.get('name')))}: {gpu.get('state')}, "
        f"{text}, pressure {gpu.get('pressure')}"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("  holder", "cap", "booked", "used", "pids"):
        justify = "left" if title in ("  holder", "pids") else "right"
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for entry in rows(gpu.get("ledger")):
        cells = [size(entry.get(key)) for key in ("cap", "booked")]
        # a row without the key has no such figure; one with null cannot be read now
        cells.append(_or_unknown(entry.get("used")) if "used" in entry else "-")
        pids = entry.get("pids")
        shown = " ".join(str(pid) for pid in pids) if isinstance(pids, list) else ""
        table.add_row(f"  {escape(str(entry.get('holder')))}", *cells, shown)
    out.print(table)
    ladder = as_row(gpu.get("ladder"))
    if gpu.get("pressure") == "calm" and not ladder.get("reclaim") and not ladder.get("fault"):
        return
    for text in _urgent(gpu, ladder):
        out.print(f"  [yellow]{escape(text)}[/yellow]")


def _urgent(gpu: Row, ladder: Row) -> list[str]:
    """What an operator wants to see at once while a GPU is not calm."""
    told = []
    if ladder.get("reason"):
        told.append(f"pressure {gpu.get('pressure')}: {ladder.get('reason')}")
    if gpu.get("time_to_full_s") is not None:
        told.append(f"full in {format_duration(number(gpu.get('time_to_full_s')))}")
    if ladder.get("reclaim"):
        told.append(str(as_row(ladder.get("reclaim")).get("text")))
    if ladder.get("loads_held"):
        told.append(f"no model may be loaded: {ladder.get('loads_held')}")
    if ladder.get("fault"):
        told.append(f"fault: {ladder.get('fault')}")
    if told:
        told.append(f"the whole story: arbiterctl why gpu{gpu.get('index')}")
    return told


def backends(out: Console, found: list[Row]) -> None:
    """A table of backends."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("backend", "phase", "takes work", "used", "cap", "restarts", "since", "why"):
        table.add_column(title)
    for row in found:
        phase = str(row.get("phase"))
        learned = number(row.get("learned_bytes"))
        why = [str(row.get("reason") or "")]
        if row.get("braked") and row.get("braked") not in why:
            why.append(str(row.get("braked")))
        if learned:
            why.append(f"cap lowered by {format_size(learned)}: arbiterctl caps")
        colour = _COLOURS.get(phase, "white")
        takes = "yes" if row.get("accepting") else f"no, retry in {row.get('retry_after_s')} s"
        table.add_row(
            escape(str(row.get("name"))),
            f"[{colour}]{phase}[/{colour}]",
            takes,
            _or_unknown(row.get("used_bytes")) if row.get("gpu") else "-",
            size(row.get("cap_bytes")),
            str(row.get("restarts")),
            _ago(row.get("since")),
            escape("; ".join(one for one in why if one)),
        )
    out.print()
    out.print(table)


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


def texts(value: Json) -> list[str]:
    """A list of texts, whatever came."""
    return [str(one) for one in value] if isinstance(value, list) else []


def _or_unknown(value: Json) -> str:
    """A size for people; a figure that cannot be read is unknown, never 0."""
    return format_size(value) if isinstance(value, int | float) else "unknown"


def size(value: Json) -> str:
    """A size for people, - for none."""
    return format_size(value) if isinstance(value, int | float) else "-"


def _ago(value: Json) -> str:
    try:
        then = datetime.fromisoformat(str(value))
    except ValueError:
        return ""
    return format_duration(max(0.0, datetime.now(then.tzinfo).timestamp() - then.timestamp()))
