"""Reading a few samples out of a Prometheus text page, four times a second at most.

prometheus_client's parser builds every family of a page (2-4 ms for vLLM's); probes need three
numbers of it, so this scans lines only.
"""

from __future__ import annotations

_MOST = 1e15  # NaN, what is negative and what lies beyond this is no count, and is passed over


def sample_sum(page: str, name: str) -> float | None:
    """Sum of all samples called exactly ``name`` (labels ignored); None when there is none."""
    total: float | None = None
    for line in page.splitlines():
        if not line.startswith(name):
            continue
        rest = line[len(name) :]
        if rest[:1] == "{":
            rest = rest.rpartition("}")[2]
        elif rest[:1] not in (" ", "\t"):
            continue
        words = rest.split()
        try:
            value = float(words[0])
        except (IndexError, ValueError):
            continue
        if not 0 <= value <= _MOST:
            continue
        total = value if total is None else total + value
    return total
