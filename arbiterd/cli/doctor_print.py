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
        what = escape(one.what)
        out.print(f"[{colour}]{one.level:<6}[/{colour}] {what}: {escape(one.why)}", soft_wrap=True)
        if one.mend:
            out.print(f"       $ {escape(one.mend)}", soft_wrap=True)
