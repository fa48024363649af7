"""Findings for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from arbiterd.survey.facts import Finding

_COLOUR = {"blocks": "red", "advice": "yellow", "note": "dim"}


def print_findings(out: Console, found: Iterable[Finding]) -> None:
    """What, why, and the command that mends it, on lines that can be copied."""
    for one in found:
        colour = _COLOUR[one.level]
        out.print(f"[{colour}]{one.level:<6}[/{colour}] {escape(one.what)}", soft_wrap=True)
        if one.why:
            out.print(f"       {escape(one.why)}", soft_wrap=True)
        if one.mend:
            out.print(f"       [bold]$ {escape(one.mend)}[/bold]", soft_wrap=True)
