"""The tables of docs/overflow.md: core's named settings with their reasons, and what an OOM leads to.

Generated from the source, so that the page cannot drift: ``python -m arbiterd.report.overflow_tables
docs/overflow.md`` writes them between their markers, a test keeps both equal.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from arbiterd.core import limits
from arbiterd.core.memory.learn import MITIGATION
from arbiterd.engines.base import CauseClass
from arbiterd.quantities import format_duration, format_size

SECTIONS = (
    "headroom and room",
    "pressure: signals",
    "pressure: brakes",
    "pressure: reclaims",
    "sleep",
    "what an OOM teaches",
)
KNOWN_BY: Mapping[CauseClass, str] = {
    CauseClass.NOT_ENOUGH_FREE: "it died before it was ready, its words or the memory say: not enough free",
    CauseClass.INIT_RACE: "vLLM says that free memory changed while it profiled",
    CauseClass.BUDGET_TOO_SMALL: "its words: the budget does not hold one context, or no block of cache",
    CauseClass.OOM_START: "an allocation failed before it was ready, with the card not full",
    CauseClass.OOM_RUNTIME: "an allocation failed while it served, with the card not full by our readings",
    CauseClass.DEVICE_FULL: "the card was full in its last seconds; it was over its cap, or nobody was",
    CauseClass.NEIGHBOUR: "the card was full; it was within its cap, a neighbour or stranger was not",
    CauseClass.POOL_FULL: "its own pool is full, the card is not (TensorFlow says 429, stays up)",
    CauseClass.HOST_RAM: "the kernel's OOM killer ended it",
}
_SECTION = re.compile(r"# -- (.+?) -+$")
_SPEED = re.compile(r"bytes (a|per) second")


class Row(NamedTuple):
    """One named setting."""

    section: str
    name: str
    value: str
    reason: str


def rows() -> list[Row]:
    """Every setting of the sections above, in the order of the source."""
    source = inspect.getsource(limits)
    comments = _comments(source)
    headers = {line: found[1] for line, text in comments.items() if (found := _SECTION.match(text))}
    out = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = [line for line in headers if line < node.lineno]
        section = headers[max(above)] if above else ""
        last = node.end_lineno or node.lineno
        said = [comments[n].lstrip("# ") for n in range(node.lineno, last + 1) if n in comments]
        if section in SECTIONS and node.value is not None:
            name, reason = node.target.id, " ".join(said)
            value = _value(name, ast.unparse(node.value), reason)
            out.append(Row(section, name, value, reason))
    return out


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {one.start[0]: one.string for one in tokens if one.type == tokenize.COMMENT}


def _value(name: str, written: str, reason: str) -> str:
    value = getattr(limits, name)
    if "MIB" in written or "GIB" in written:
        return format_size(value) + ("/s" if _SPEED.search(reason) else "")
    if name.endswith("_FRACTION") or name == "SEEN_BACK":
        return f"{value * 100:g} %"
    return format_duration(value) if name.endswith("_S") else f"{value:g}"


def limits_table() -> str:
    """Name, value, reason; a heading row for each section."""
    out = ["| setting | value | why |", "| --- | --- | --- |"]
    section = ""
    for row in rows():
        if row.section != section:
            section = row.section
            out.append(f"| **{section}** | | |")
        out.append(f"| `{row.name}` | {row.value} | {row.reason} |")
    return "\n".join(out) + "\n"


def oom_table() -> str:
    """Class, how it is told, what is done."""
    out = ["| class | how it is told | what is done |", "| --- | --- | --- |"]
    for one, done in MITIGATION.items():
        out.append(f"| `{one.value}` | {KNOWN_BY[one]} | {done} |")
    return "\n".join(out) + "\n"


def filled(text: str) -> str:
    """The page with both tables between their markers."""
    for name, table in (("ooms", oom_table()), ("limits", limits_table())):
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- /{name} -->"
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}{table}{end}{rest.split(end, 1)[1]}"
    return text


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(filled(page.read_text()))
