"""docs/threads.md lists every thread that the daemon's code begins."""

from __future__ import annotations

import re

from tests.support.threads import ROOT, table

# Not the daemon's: the load gate and the NVML worker are processes of their own.
ELSEWHERE = {"events"}


def test_every_name_in_the_code_is_in_the_table_and_no_other() -> None:
    """Literal names at `thread(...)` and `aside(...)`; those made of parts by their first part."""
    found: set[str] = set()
    for path in (ROOT / "arbiterd").rglob("*.py"):
        if "sim" in path.parts:
            continue
        text = path.read_text()
        found |= set(re.findall(r'(?:aside|thread)\([^\n]*name=f?"([a-z-]+?)-?["{]', text))
    found |= {"aside", "probe", "main"}  # named elsewhere
    found |= {
        f"{name}.json" for name in ("incidents", "learned", "carry", "gpus", "keyed")
    }  # stores
    listed = {re.split(r"-(?:NAME|GPU)", row.name)[0] for row in table()}
    assert found - ELSEWHERE == listed
