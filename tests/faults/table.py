"""All rows."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatch

from tests.faults import daemon, engines, files, gateway, nvml, systemd
from tests.faults.row import Fault


def table() -> list[Fault]:
    """Every fault, in the order in which they are played on a stage."""
    rows = [
        *engines.rows(),
        *nvml.rows(),
        *daemon.rows(),
        *gateway.rows(),
        *files.rows(),
        *systemd.rows(),
    ]
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    assert not twice, f"ids used twice: {twice}"
    return rows


def chosen(patterns: list[str]) -> list[Fault]:
    """Rows whose id, kind or stage matches one of the patterns; all where there is none."""
    return [
        row
        for row in table()
        if not patterns
        or any(fnmatch(word, one) for one in patterns for word in (row.id, row.kind, row.stage))
    ]
