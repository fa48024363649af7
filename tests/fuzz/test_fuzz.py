"""Every target for a moment, by fixed inputs; and the smallest input of each defect that a run has found."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.run import Session
from tests.fuzz.table import TARGETS, find
from tests.fuzz.target import Defect, Target, judge

CASES = Path(__file__).parent / "cases"
KEPT = sorted(path for path in CASES.rglob("*") if path.is_file())


@pytest.mark.parametrize("target", TARGETS, ids=lambda one: one.name.replace("/", ":"))
def test_a_reader_raises_only_what_it_documents(target: Target) -> None:
    """Twenty inputs, the same in each run; `make fuzz` tries others."""

    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(target.strategy)
    def some(data: bytes) -> None:
        judge(target, data)

    for seed in target.seeds:
        judge(target, seed)
    some()


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}:{path.name}")
def test_fuzz_cases(path: Path) -> None:
    """An input that once broke its reader (a slash in the target's name is a colon in the folder's)."""
    judge(find(path.parent.name.replace(":", "/")), path.read_bytes())


def test_a_defect_is_told_once_and_passed_over_then() -> None:
    """An undocumented error, a documented one, and one that is known already."""
    base = find("env file")

    def read(data: bytes) -> None:
        if data == b"bad":
            raise KeyError(data)
        if data == b"refused":
            raise ValueError(data)

    told: list[dict[str, object]] = []
    session = Session(Target("t", read, base.strategy, (ValueError,)), told.append)
    session.one(b"good")
    session.one(b"refused")
    with pytest.raises(Defect, match="KeyError"):
        session.one(b"bad")
    session.found()
    session.one(b"bad")
    assert [row["input"] for row in told] == ["YmFk"]
    assert session.inputs == 4


def test_an_input_without_an_end_is_told() -> None:
    """A loop, and a regular expression with too many ways to fail: given up, with the place and the input."""

    def read(data: bytes) -> None:
        while data == b"loop":
            pass
        re.fullmatch(rb"(a+)+b", data)

    base, told = find("env file"), list[dict[str, object]]()
    session = Session(Target("t", read, base.strategy), told.append, hang_s=0.2)
    for data in (b"loop", b"a" * 60, b"good"):
        with suppress(Defect):
            session.one(data)
        session.found()
    assert [row["input"] for row in told] == [
        base64.b64encode(one).decode() for one in (b"loop", b"a" * 60)
    ]
    assert all(str(row["sign"]).startswith("Hang at ") for row in told)
