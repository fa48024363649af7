"""docs/overflow.md says what core does: its tables are generated, its numbers are core's."""

from __future__ import annotations

from pathlib import Path

from arbiterd.core import limits
from arbiterd.core.memory.learn import MITIGATION
from arbiterd.report import overflow_tables

PAGE = Path(__file__).resolve().parents[2] / "docs/overflow.md"


def test_the_page_has_the_tables_of_the_source() -> None:
    """Mend it with: python -m arbiterd.report.overflow_tables docs/overflow.md."""
    text = PAGE.read_text()
    assert overflow_tables.filled(text) == text


def test_every_setting_is_listed_with_its_reason() -> None:
    """No number without one; no section forgotten."""
    found = overflow_tables.rows()
    assert {row.section for row in found} == set(overflow_tables.SECTIONS)
    assert [row.name for row in found if len(row.reason) < 10] == []
    names = {row.name for row in found}
    assert {"TIGHT_S", "LEAD_S", "FREEZE_S", "DISRUPTIVE_MAX", "CAP_FLOOR_FRACTION"} <= names


def test_values_are_printed_with_their_units() -> None:
    """Sizes, speeds, durations, shares and counts."""
    value = {row.name: row.value for row in overflow_tables.rows()}
    assert value["STEP_BYTES"] == "256 MiB"
    assert value["SLEEP_BYTES_S"] == "4.00 GiB/s"
    assert value["SLOPE_MIN"] == "1 MiB/s"
    assert value["CAP_CALM_S"] == "24 h"
    assert value["OVER_FRACTION"] == "3 %"
    assert value["DISRUPTIVE_MAX"] == str(limits.DISRUPTIVE_MAX)


def test_every_class_of_oom_is_explained() -> None:
    """How it is told, and what is done."""
    assert set(overflow_tables.KNOWN_BY) == set(MITIGATION)
