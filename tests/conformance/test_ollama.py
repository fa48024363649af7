"""Ollama's cases, on the stand-in and on a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import Case, load
from tests.conformance.engine import Servers
from tests.conformance.ollama import Real, StandIn, installed
from tests.conformance.suite import check, parameters

STAND_IN = StandIn()
REAL = Real(installed())


@pytest.mark.parametrize("case", parameters(load("ollama")))
def test_the_stand_in_answers_as_recorded(
    case: Case, servers: Servers, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """Status, headers, framing, bodies, order, processes."""
    check(STAND_IN, case, servers, tmp_path, record_property)


@pytest.mark.real
@pytest.mark.skipif(
    not installed(), reason="no ollama: set OLLAMA=/path/to/ollama or have it on PATH"
)
@pytest.mark.parametrize("case", parameters(load("ollama")))
def test_the_real_one_answers_as_recorded(
    case: Case, servers: Servers, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """With tiny models that the suite makes."""
    check(REAL, case, servers, tmp_path, record_property)
