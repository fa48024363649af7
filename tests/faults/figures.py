"""What came of a run, as text and as Markdown (docs/reliability.md has such a table)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from tests.faults.row import Result

_HEAD = ("kind", "tried", "survived", "median s", "max s")


def _lines(results: Iterable[Result]) -> list[tuple[str, str, str, str, str]]:
    kinds: dict[str, list[Result]] = {}
    for one in results:
        if one.verdict != "skipped":
            kinds.setdefault(one.kind, []).append(one)
    out = [_line(kind, rows) for kind, rows in sorted(kinds.items())]
    every = [one for rows in kinds.values() for one in rows]
    return [*out, _line("all", every)] if every else []


def _line(kind: str, rows: Sequence[Result]) -> tuple[str, str, str, str, str]:
    good = [one.seconds for one in rows if one.verdict == "ok" and one.seconds is not None]
    middle, most = (f"{statistics.median(good):.1f}", f"{max(good):.1f}") if good else ("-", "-")
    return kind, str(len(rows)), str(sum(one.verdict == "ok" for one in rows)), middle, most


def printed(results: Sequence[Result], took_s: float) -> str:
    """For a terminal: one line per kind, then what failed and what was skipped."""
    rows = [_HEAD, *_lines(results)]
    wide = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    out = [
        "  ".join(
            word.ljust(wide[0]) if i == 0 else word.rjust(wide[i]) for i, word in enumerate(row)
        )
        for row in rows
    ]
    for verdict in ("failed", "skipped"):
        out += [f"{verdict}: {one.id}: {one.why}" for one in results if one.verdict == verdict]
    return "\n".join([*out, f"{took_s / 60:.1f} min"])


def markdown(results: Sequence[Result], took_s: float) -> str:
    """The table of kinds, then every fault with its promise."""
    out = ["| " + " | ".join(_HEAD) + " |", "| --- | ---: | ---: | ---: | ---: |"]
    out += ["| " + " | ".join(row) + " |" for row in _lines(results)]
    out += [
        "",
        f"{took_s / 60:.1f} min",
        "",
        "| fault | promise | verdict | s |",
        "| --- | --- | --- | ---: |",
    ]
    for one in results:
        if not one.kind.startswith("SIGKILL"):
            seconds = "-" if one.seconds is None else f"{one.seconds:.1f}"
            out.append(f"| {one.id} | {one.promise} | {one.verdict} | {seconds} |")
    return "\n".join(out) + "\n"
