"""A quick part of the table (`make test-faults` plays all of it), and what the table itself must be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.direct import DirectStage
from tests.faults.figures import markdown, printed
from tests.faults.kills import kills
from tests.faults.play import play
from tests.faults.row import Result
from tests.faults.table import chosen, table

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
# One host for all of them: each leaves it as calm as it was.
QUICK = (
    "engine-kill-vllm",
    "driver-garbage-sum",
    "driver-xid-63",
    "daemon-kill",
    "daemon-paused-4s",
    "gateway-kill-gate",
    "state-carry.json-words",
    "config-kind-list",
)


class Shared(DirectStage):
    """One host for all that this module plays."""

    def close(self) -> None:
        """Not yet."""

    def end(self) -> None:
        """Now."""
        super().close()


def test_the_table_has_every_kind() -> None:
    """At least 120 faults; every id once; each with a promise, every kind that issues have named."""
    rows = table()
    assert len(rows) >= 120
    kinds = Counter(row.kind for row in rows)
    assert {"engine", "driver", "daemon", "gateway", "client", "api", "state", "config", "disk",
            "systemd", "access", "resources"} <= kinds.keys()  # fmt: skip
    assert all(row.promise for row in rows)
    assert {row.stage for row in rows} == {"direct", "disk", "box", "hybrid"}


def test_patterns_choose_by_id_kind_and_stage() -> None:
    """As `make test-faults ARGS=` takes them."""
    assert [row.id for row in chosen(["daemon-kill"])] == ["daemon-kill"]
    assert {row.kind for row in chosen(["driver"])} == {"driver"}
    assert {row.stage for row in chosen(["hybrid"])} == {"hybrid"}
    assert chosen(["no-such-row"]) == []


def test_figures_count_what_survived() -> None:
    """A failed row is tried, not survived; a skipped one is neither; both are named."""
    rows = [
        Result("a", "engine", "direct", "p", "ok", 1.0),
        Result("b", "engine", "direct", "p", "ok", 3.0),
        Result("c", "engine", "direct", "p", "failed", None, "no service"),
        Result("d", "disk", "disk", "p", "skipped", None, "not root"),
    ]
    assert "| engine | 3 | 2 | 2.0 | 3.0 |" in markdown(rows, 60.0)
    text = printed(rows, 60.0)
    assert "failed: c: no service" in text
    assert "skipped: d: not root" in text


def test_a_few_faults_are_survived(sim_lib: Path) -> None:
    """On one host: a fault of most kinds after the other; two SIGKILLs of a seed; and the harness itself:
    a row whose promise is not kept fails, and says by whom.
    """
    host = Shared(sim_lib)
    try:
        host.start()
        rows = {row.id: row for row in table()}
        results = list(play([rows[name] for name in QUICK], lambda: host))
        assert {one.id: one.why for one in results if one.verdict != "ok"} == {}
        assert [one.id for one in results] == list(QUICK)
        results = list(kills(lambda: host, 2, 7, "direct"))
        assert {one.id: one.why for one in results if one.verdict != "ok"} == {}
        broken = replace(rows["engine-kill-ollama"], moves=())
        results = list(play([broken], lambda: host, settle_s=1.0))
        assert [one.verdict for one in results] == ["failed"]
        assert "ollama was touched" in results[0].why
    finally:
        host.end()
