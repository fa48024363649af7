"""``arbiterctl top``: the status, live."""

from __future__ import annotations

import io
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from arbiterd.cli.client import Client, Refused, Unreachable
from arbiterd.cli.common import console, globals_of, polite, print_json
from arbiterd.cli.show import as_row, print_status


def top(
    context: typer.Context,
    every: float = typer.Option(1.0, min=0.1, help="seconds between two looks"),
) -> None:
    """Show live status; q or Ctrl-C to quit. Without a terminal, print it once.

    A daemon that goes away is said, and looked for again.

    Examples: arbiterctl top · arbiterctl top --every 0.5
    """
    own = globals_of(context)
    with polite():
        client = own.client()
        body = client.get("/v1/status")
    if own.json:
        print_json(body)
        return
    out = console()
    if not sys.stdout.isatty():
        print_status(out, as_row(body))
        return
    with suppress(KeyboardInterrupt), _keys() as ended, _screen(out) as live:
        while True:
            live.update(_picture(out, client), refresh=True)
            if ended(every):
                return


def _screen(out: Console) -> Live:
    return Live(console=out, screen=True, auto_refresh=False, vertical_overflow="crop")


def _picture(out: Console, client: Client) -> Text:
    """One look, as ``status`` prints it.

    On a console of its own: what is captured on the one that Live draws on comes back with Live's
    own picture around it, and the second frame would be the first one again.
    """
    page = Console(
        file=io.StringIO(),
        force_terminal=True,
        no_color=out.no_color,
        color_system="standard" if out.color_system else None,
        width=out.width,
        height=out.height,
        highlight=False,
    )
    with page.capture() as captured:
        try:
            print_status(page, as_row(client.get("/v1/status")))
        except (Unreachable, Refused) as error:
            page.print(str(error), markup=False, style="red")
        page.print("\n[dim]q ends[/dim]")
    return Text.from_ansi(captured.get())


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Keys one by one and unseen while it lasts; without a terminal as input there are none."""
    if not sys.stdin.isatty():
        yield _slept
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield _asked
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _asked(seconds: float) -> bool:
    """Whether q is typed within that time, or the terminal is gone."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            typed = os.read(sys.stdin.fileno(), 64)
            if not typed or b"q" in typed.lower():
                return True
    return False
