"""Following a reload to its end: the switch step by step, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from arbiterd.cli.client import Client, Unreachable
from arbiterd.cli.show import Row, as_row, number, rows
from arbiterd.errors import ArbiterError
from arbiterd.quantities import format_duration

EVERY_S = 0.2
DOORS_S = 60.0  # a busy HAProxy takes seconds until its next worker serves; then the switch is what counts
AWAY_S = 60.0  # a restart of the daemon in the middle is no end: it carries the switch on


@dataclass(frozen=True, slots=True)
class End:
    """``outcome``: in_force, rolled_back, superseded or failed. ``mode``: in force now. ``sha256``: of
    the file in force.
    """

    outcome: str
    mode: str
    sha256: str
    took_s: float
    reason: str = ""


class Quiet:
    """No progress at all (--json)."""

    def show(self, status: Row) -> None:
        """One look at the switch."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was opened."""


class Lines(Quiet):
    """A line on stderr whenever something has changed: for logs, timers, pipes."""

    def __init__(self) -> None:
        self._said: object = None

    def show(self, status: Row) -> None:
        """Print the line when a step or the target has changed; the estimate alone is no change."""
        switch = as_row(status.get("switch"))
        steps = [
            (s.get("backend"), s.get("phase"), s.get("done")) for s in rows(switch.get("steps"))
        ]
        news = (
            switch.get("from"),
            switch.get("to"),
            switch.get("rolling_back"),
            switch.get("queued"),
            steps,
        )
        if switch and news != self._said:
            self._said = news
            print(switch.get("line"), file=sys.stderr, flush=True)


class Screen(Quiet):
    """A live table on a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, status: Row) -> None:
        """One look."""
        switch = as_row(status.get("switch"))
        self._live.update(_picture(switch) if switch else Text(""))


def _picture(switch: Row) -> Group:
    table = Table(box=None, pad_edge=False, show_header=False)
    for step in rows(switch.get("steps")):
        kept = step.get("change") == "keep"
        mark = (
            "[dim]·[/dim]" if kept else "[green]✓[/green]" if step.get("done") else "[cyan]…[/cyan]"
        )
        doing = "kept" if kept else str(step.get("doing"))
        table.add_row(
            mark, escape(str(step.get("backend"))), str(step.get("change")), escape(doing)
        )
    head = Text(str(switch.get("line")), style="yellow" if switch.get("rolling_back") else "bold")
    return Group(head, table)


def progress(*, json: bool) -> Quiet:
    """How this call shows progress."""
    if json:
        return Quiet()
    return Screen() if sys.stderr.isatty() else Lines()


@contextmanager
def left_alone() -> Iterator[None]:
    """Ctrl-C ends the looking, not the switch."""
    try:
        yield
    except KeyboardInterrupt:
        print("\narbiterctl: the switch goes on; look at it: arbiterctl status", file=sys.stderr)
        raise


def follow(client: Client, accepted: Row, timeout_s: float, *, json: bool) -> End:
    """Wait for the end of what this reload began. ``accepted``: the daemon's answer to it.

    Raises:
        ArbiterError: not done in time; the switch goes on.

    """
    began = time.monotonic()
    heard = began
    ended = 0.0
    said = ""
    with left_alone(), progress(json=json) as view:
        while time.monotonic() - began < timeout_s:
            try:
                status = as_row(client.get("/v1/status"))
            except Unreachable:
                if time.monotonic() - heard > AWAY_S:
                    raise
                time.sleep(EVERY_S)
                continue
            heard = time.monotonic()
            view.show(status)
            end = end_of(status, accepted, heard - began)
            if end is None:
                ended = 0.0
                line = as_row(status.get("switch")).get("line")
                said = str(line or "the reload waits for its turn")
            elif not _doors_are_behind(status) or heard - (ended or heard) > DOORS_S:
                return end
            else:
                ended = ended or heard
                said = "the doors take the new configuration"
            time.sleep(EVERY_S)
    msg = f"not done within {format_duration(timeout_s)}, it goes on: {said}"
    raise ArbiterError(msg)


def _doors_are_behind(status: Row) -> bool:
    return bool(as_row(status.get("gateway")).get("reloading"))


def end_of(status: Row, accepted: Row, waited_s: float) -> End | None:
    """What came of it, None while it is under way."""
    config = as_row(status.get("config"))
    last = as_row(status.get("last_switch"))
    if status.get("switch"):
        return None
    ours, loaded = str(accepted.get("loaded_at")), str(config.get("loaded_at"))
    told = str(last.get("loaded_at") or "") >= ours
    mode, sha = str(status.get("mode")), str(config.get("sha256"))
    in_force = (sha, mode) == (accepted.get("sha256"), accepted.get("mode"))
    if not told and last and in_force and loaded >= ours:
        # The layout that a rollback brought back was asked for meanwhile: only the rollback is told of.
        return End("in_force", mode, sha, waited_s)
    if not told and (last or loaded <= ours):
        return None  # not taken yet; without any word of it after a restart of the daemon: as it is
    outcome = str(last.get("outcome") or "in_force")
    reason = str(last.get("reason") or "")
    took = number(last.get("took_s")) if last else waited_s
    if outcome == "rolled_back" and in_force:
        return None  # the way back begins with the next tick
    if in_force:
        return End("in_force" if outcome == "in_force" else "failed", mode, sha, took, reason)
    if outcome == "in_force":
        return End("superseded", mode, sha, took, f"a newer reload took its place: mode {mode}")
    return End(outcome, mode, sha, took, reason)
