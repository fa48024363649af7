"""Traces: what sense saw and what core decided, tick by tick, as JSON lines.

The first line carries the settings and core's state before the first tick, each further line what
has changed since the one before (docs/traces.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from arbiterd import __version__
from arbiterd.core.mode.intent import intent
from arbiterd.core.state import State
from arbiterd.errors import ArbiterError
from arbiterd.files import strict_json
from arbiterd.model.decision import Decision
from arbiterd.model.observation import Observation
from arbiterd.model.settings import Settings
from arbiterd.secrets.redact import Redactor
from arbiterd.trace.codec import SAME, Json, decode, difference, encode, patch

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick as it was: core's input, and what came of it."""

    observation: Observation
    before: State
    decision: Decision
    settings: Settings


class Writer:
    """Makes the lines of one trace, in order, without secrets."""

    def __init__(self, redactor: Redactor | None = None) -> None:
        self._last: Tick | None = None
        self._redactor = redactor or Redactor()

    def lines(self, tick: Tick) -> Iterator[str]:
        """The header before the first tick, then one line a tick."""
        last = self._last
        self._last = tick
        if last is None:
            yield self._line(
                {
                    "trace": FORMAT,
                    "version": __version__,
                    "recorded_at": tick.observation.wall,
                    "settings": encode(tick.settings),
                    "state": encode(tick.before),
                }
            )
            yield self._line({"o": encode(tick.observation), "d": encode(tick.decision)})
            return
        row: dict[str, Json] = {}
        if tick.settings is not last.settings:
            row["s"] = encode(tick.settings)
        for key, old, new in (
            ("o", last.observation, tick.observation),
            ("d", last.decision, tick.decision),
        ):
            change = difference(old, new)
            if change is not SAME:
                row[key] = change
        yield self._line(row)

    def _line(self, row: Json) -> str:
        text = _text(row)
        if not self._redactor.has(text):
            return text
        self._sign(row)
        return _text(self._redactor.document(row))

    def _sign(self, value: Json) -> None:
        """A backend that loses a secret keeps the digest it was started by: a replay would restart it."""
        if isinstance(value, list):
            for one in value:
                self._sign(one)
        elif isinstance(value, dict):
            if value.get("$") == "Mode":
                for name, backend in value["backends"].items():
                    if self._redactor.has(_text(backend)):
                        share = value["shares"][name]
                        backend["digest"] = intent(decode(backend), decode(share))
            for one in value.values():
                self._sign(one)


def _text(row: Json) -> str:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a trace."""

    version: str
    recorded_at: float
    settings: Settings
    state: State


class Reader:
    """Reads a trace line by line. ``header`` is there at once.

    Raises:
        ArbiterError: no trace, or one that this version cannot read; the message says why.

    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        row = _row(next(self._lines, ""), 1)
        if row.get("trace") != FORMAT:
            msg = "line 1: this is no trace; arbiterctl record FILE writes one"
            raise ArbiterError(msg)
        try:
            self.header = Header(
                version=str(row["version"]),
                recorded_at=float(row["recorded_at"]),
                settings=_one(Settings, decode(row["settings"])),
                state=_one(State, decode(row["state"])),
            )
        except KeyError as error:
            msg = f"line 1: the header has no {error}"
            raise ArbiterError(msg) from None
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"line 1: the header cannot be read: {error}"
            raise ArbiterError(msg) from None
        except ArbiterError as error:
            msg = f"line 1, recorded by version {row.get('version')}: {error}"
            raise ArbiterError(msg) from None

    def ticks(self) -> Iterator[tuple[Observation, Decision, Settings]]:
        """Every tick as it was recorded. A last line that was cut off is left out.

        Raises:
            ArbiterError: a line that is none.

        """
        observation: Observation | None = None
        decision: Decision | None = None
        settings = self.header.settings
        for number, text in enumerate(self._lines, 2):
            if not text.endswith("\n"):
                return
            row = _row(text, number)
            if "error" in row:
                msg = f"line {number}: the recording ended: {row['error']}"
                raise ArbiterError(msg)
            try:
                settings = _one(Settings, decode(row["s"])) if "s" in row else settings
                if "o" in row:
                    observation = _one(Observation, patch(observation, row["o"]))
                if "d" in row:
                    decision = _one(Decision, patch(decision, row["d"]))
            except _NO_LINE as error:
                msg = f"line {number}, recorded by version {self.header.version}: {error}"
                raise ArbiterError(msg) from None
            if observation is None or decision is None:
                msg = f"line {number}: the first tick is not whole"
                raise ArbiterError(msg)
            yield observation, decision, settings


_NO_LINE = (ArbiterError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
T = TypeVar("T")


def _one(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        msg = f"a {type(value).__name__} where a {kind.__name__} belongs"
        raise TypeError(msg)
    return value


def _row(text: str, number: int) -> dict[str, Json]:
    try:
        row = strict_json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        msg = f"line {number}: this is no line of a trace; arbiterctl record FILE writes one"
        raise ArbiterError(msg)
    return row
