"""The XID table says what docs/facts/nvml.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arbiterd.core.memory.xids import UNKNOWN_XID, XidClass, describe, xid_class

FACTS = Path(__file__).parents[2] / "docs" / "facts" / "nvml.md"


def _documented() -> dict[int, XidClass]:
    """Code -> class of every row of the facts' table, its first word."""
    section = FACTS.read_text().split("## 4. XID table")[1].split("\n## ")[0]
    out: dict[int, XidClass] = {}
    for row in re.findall(r"^\| ([\d /,–]+) \|.*\| (\w+)[^|]*\|$", section, re.MULTILINE):
        codes, verdict = row
        for word in re.split(r"[/,]", codes):
            first, _, last = word.strip().partition("–")
            for code in range(int(first), int(last or first) + 1):
                out[code] = XidClass(verdict)
    return out


def test_every_documented_xid_has_its_class() -> None:
    """Row by row; and each has a name."""
    documented = _documented()
    assert len(documented) > 40
    for code, verdict in documented.items():
        assert xid_class(code) is verdict, code
        assert "not in the table" not in describe(code)


@pytest.mark.parametrize("code", [1, 500, UNKNOWN_XID])
def test_an_unknown_xid_holds_the_gpu(code: int) -> None:
    """Held and said, never shrugged off."""
    assert code not in _documented()
    assert xid_class(code) is XidClass.GPU
    assert "Xid" in describe(code)


def test_describe_names_code_and_meaning() -> None:
    """For people."""
    assert describe(79) == "Xid 79 (GPU has fallen off the bus)"
