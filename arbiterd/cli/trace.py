"""``arbiterctl record`` and ``arbiterctl replay``: traces through the same decision core."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import typer

from arbiterd.cli import screen
from arbiterd.cli.common import globals_of, polite, print_json
from arbiterd.config import load
from arbiterd.errors import EX_REFUSED, ArbiterError
from arbiterd.model.actions import Action
from arbiterd.model.decision import Decision
from arbiterd.trace.lines import Reader
from arbiterd.trace.replay import Replayed, replay

_TOLD = 20  # differing ticks that are printed


def _private(path: Path) -> IO[bytes]:
    """Empty, and its owner's alone: a trace names processes, users and models."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.fchmod(fd, 0o600)
    return os.fdopen(fd, "wb")


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[str]]:
    """A trace file; ``.gz`` is packed, ``-`` is standard input or output."""
    if str(path) == "-":
        yield sys.stdin if mode == "r" else screen.plain()
        return
    try:
        with path.open("rb") if mode == "r" else _private(path) as raw:
            packed = gzip.GzipFile(fileobj=raw, mode=f"{mode}b") if path.suffix == ".gz" else raw
            with io.TextIOWrapper(cast("IO[bytes]", packed), encoding="utf-8") as text:
                yield text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        msg = f"{path}: {why}"
        raise ArbiterError(msg) from None


def record(
    context: typer.Context,
    file: Path = typer.Argument(help="where to; .gz packs it, - is standard output"),
    seconds: float = typer.Option(0.0, min=0.0, help="end by itself after so long"),
) -> None:
    """Write what the daemon sees and decides, tick by tick, until Ctrl-C.

    The file is its owner's alone (0600). The configuration is in it, without the values of secrets.

    Examples: arbiterctl record incident.jsonl.gz · arbiterctl record - --seconds 60 | head -3
    """
    own = globals_of(context)
    query = f"?seconds={seconds:g}" if seconds else ""
    ticks = 0
    with polite():
        client = own.client()
        with (
            client.lines(f"/v1/admin/trace{query}") as lines,
            _opened(file, "w") as out,
            suppress(KeyboardInterrupt),
        ):
            for line in lines:
                out.write(line)
                ticks += 1
                if str(file) == "-":
                    out.flush()
    ticks = max(0, ticks - 1)
    if own.json and str(file) != "-":
        print_json({"file": str(file), "ticks": ticks})
    elif str(file) != "-":
        print(f"{ticks} ticks in {file}; arbiterctl replay {file}")


def replay_trace(
    context: typer.Context,
    file: Path = typer.Argument(help="a trace of arbiterctl record"),
    quiet: bool = typer.Option(False, "--quiet", help="no timeline, only the comparison"),
) -> None:
    """Run a trace through the decision core of this version, and compare with what was decided then.

    With --config FILE it decides by that configuration instead of the recorded one. Exit status 1: by
    the recorded one it decides otherwise now.

    Examples: arbiterctl replay incident.jsonl.gz · arbiterctl replay incident.jsonl --config new.toml
    """
    own = globals_of(context)
    other = own.config
    with polite():
        settings = load(other, os.environ).settings if other else None
        with _opened(file, "r") as lines:
            reader = Reader(lines)
            found = _Report(quiet=quiet or own.json)
            for one in replay(reader, settings):
                found.add(one)
    if own.json:
        print_json(found.as_json(str(file), reader.header.version))
    else:
        found.say()
    if found.differing and other is None:
        raise SystemExit(EX_REFUSED)


class _Report:
    """The timeline and the comparison of one replay."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began: float | None = None
        self._at = 0.0
        self.ticks = 0
        self.differing = 0
        self.rows: list[dict[str, object]] = []
        self.differences: list[dict[str, object]] = []

    def add(self, one: Replayed) -> None:
        """One tick."""
        now = one.observation.now
        self._began = now if self._began is None else self._began
        self._at = now - self._began
        self.ticks += 1
        for event in one.decision.events:
            self._row("event", event.name.value, event.backend, event.message)
        for action in one.decision.actions:
            self._row("action", type(action).__name__, action.backend, action.reason)
        if not one.same:
            self.differing += 1
            if len(self.differences) < _TOLD:
                what = _differences(one.recorded, one.decision)
                self.differences.append(
                    {"at_s": round(self._at, 3), "tick": self.ticks, "what": what}
                )

    def _row(self, kind: str, name: str, backend: str, text: str) -> None:
        self.rows.append({"at_s": round(self._at, 3), kind: name, "backend": backend, "text": text})
        if not self._quiet:
            mark = "→" if kind == "action" else " "
            print(f"{self._at:10.3f} {mark} {name:16} {text}")

    def as_json(self, file: str, version: str) -> dict[str, object]:
        """For programs."""
        return {
            "file": file,
            "recorded_by": version,
            "ticks": self.ticks,
            "seconds": round(self._at, 3),
            "identical": not self.differing,
            "differing_ticks": self.differing,
            "differences": self.differences,
            "timeline": self.rows,
        }

    def say(self) -> None:
        """For people."""
        for one in self.differences:
            print(f"tick {one['tick']} at {one['at_s']} s differs: {one['what']}")
        told = f"{self.ticks} ticks over {self._at:.1f} s"
        if self.differing:
            print(f"{told}: {self.differing} are decided otherwise than when recorded")
        else:
            print(f"{told}: every decision is the same as when recorded")


def _differences(then: Decision, now: Decision) -> str:
    """The parts that differ, actions in words."""
    parts = [
        name for name in then.__dataclass_fields__ if getattr(then, name) != getattr(now, name)
    ]
    text = ", ".join(parts)
    if "actions" in parts:
        text += f" (then {_words(then.actions)}, now {_words(now.actions)})"
    return text


def _words(actions: tuple[Action, ...]) -> str:
    return ", ".join(f"{type(one).__name__} {one.backend}" for one in actions) or "nothing"
