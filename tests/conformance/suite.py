"""One test per case, for every engine alike; and the count of passed cases at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import Case
from tests.conformance.engine import Engine, Servers
from tests.conformance.play import Player

TRIES = 3  # for cases that depend on the clock: a machine that was late shows nothing; each is told
_PROPERTY = "conformance"
_AGAIN = "conformance again"


def check(
    engine: Engine,
    case: Case,
    servers: Servers,
    home: Path,
    record: Callable[[str, Any], None],
) -> None:
    """Play a case on an engine; fail with every difference, one a line."""
    record(_PROPERTY, f"{case.engine}, {'real' if engine.real else 'stand-in'}")
    found: list[str] = []
    for number in range(TRIES if case.timed else 1):
        if number:
            record(_AGAIN, f"{case.name}: {'; '.join(found)}")
        if case.server:
            with servers.serving(engine, case) as server:
                found = Player(case, engine, server, home).play()
        else:
            found = Player(case, engine, None, home).play()
        if not found:
            return
    shown = "\n  ".join(found)
    pytest.fail(f"{case.name}: {case.shows}\n  {shown}", pytrace=False)


def parameters(cases: Iterable[Case]) -> list[Any]:
    """The cases for ``pytest.mark.parametrize``, named."""
    return [pytest.param(case, id=case.name.replace("/", "|")) for case in cases]


def summary(reports: Iterable[pytest.TestReport]) -> list[str]:
    """``conformance: ollama, stand-in: 213 of 213 cases pass``, one line per engine; and every case
    that was played again, with what differed before.
    """
    passed: Counter[str] = Counter()
    played: Counter[str] = Counter()
    again: dict[str, list[str]] = {}
    for report in reports:
        name = dict(report.user_properties).get(_PROPERTY)
        if name is not None and report.when == "call":
            played[str(name)] += 1
            passed[str(name)] += report.passed
            retried = [str(value) for key, value in report.user_properties if key == _AGAIN]
            again.setdefault(str(name), []).extend(retried)
    lines = []
    for name in sorted(played):
        tries = again[name]
        more = f", {len(tries)} played again" if tries else ""
        lines.append(f"conformance: {name}: {passed[name]} of {played[name]} cases pass{more}")
        lines += [f"  again: {text[:300]}" for text in tries]
    return lines
