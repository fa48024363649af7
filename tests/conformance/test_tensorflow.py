"""TensorFlow Serving's cases on the stand-in, and on a real server where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import FOLDER, Case, load
from tests.conformance.engine import Servers
from tests.conformance.suite import check, parameters
from tests.conformance.tensorflow import REAL, TensorflowServing

CASES = parameters(load("tensorflow"))
STAND_IN = TensorflowServing(real=False)
SERVER = TensorflowServing(real=True)
Record = Callable[[str, Any], None]


@pytest.mark.parametrize("case", CASES)
def test_stand_in(case: Case, servers: Servers, tmp_path: Path, record_property: Record) -> None:
    """As the case says."""
    check(STAND_IN, case, servers, tmp_path, record_property)


@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_real(case: Case, servers: Servers, tmp_path: Path, record_property: Record) -> None:
    """As the case says."""
    if not REAL:
        pytest.skip("no tensorflow_model_server in PATH or TENSORFLOW_MODEL_SERVER")
    check(SERVER, case, servers, tmp_path, record_property)


def test_every_case_names_the_source_that_it_rests_on() -> None:
    """There was no server to record."""
    cases = json.loads((FOLDER / "tensorflow.json").read_text())["cases"]
    assert all(case["rests_on"] for case in cases)
