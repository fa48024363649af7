"""Dying words: ordered tables of patterns, first match wins, wrappers only when nothing else fits.

Texts and classes come from docs/facts/engines.md, section 'Error catalogue'.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from arbiterd.engines.base import Cause, CauseClass
from arbiterd.model.launch import Exit


@dataclass(frozen=True, slots=True)
class Word:
    """One pattern. ``retry`` False: starting again unchanged cannot help."""

    pattern: re.Pattern[str]
    cause: CauseClass
    summary: str
    retry: bool = True


def word(pattern: str, cause: CauseClass, summary: str, *, retry: bool = True) -> Word:
    """Build one row."""
    return Word(re.compile(pattern), cause, summary, retry)


ANY = (
    word(r"(?i)address already in use", CauseClass.PORT_IN_USE, "its port is taken"),
    word(
        r"Driver/library version mismatch",
        CauseClass.DRIVER,
        "driver and library versions differ; reboot or reload the driver",
        retry=False,
    ),
    word(
        r"CUDA driver version is insufficient|driver on your system is too old",
        CauseClass.DRIVER,
        "the GPU driver is too old for this engine",
        retry=False,
    ),
    word(
        r"no kernel image is available for execution",
        CauseClass.DRIVER,
        "this engine build has no code for this GPU",
        retry=False,
    ),
    word(
        r"illegal memory access|unspecified launch failure|device-side assert"
        r"|CUBLAS_STATUS_(?:ALLOC_FAILED|EXECUTION_FAILED)",
        CauseClass.CONTEXT_POISONED,
        "its CUDA context is broken; a fresh process is needed",
    ),
    word(r"GPU is lost|fallen off the bus|Xid 79", CauseClass.GPU_FAULT, "the GPU is lost"),
)
_KILLED = 9


def classify(
    lines: Sequence[str],
    exit_: Exit | None,
    rows: Sequence[Word],
    *,
    benign: re.Pattern[str] | None = None,
    wrappers: Sequence[Word] = (),
) -> Cause:
    """The first row (in table order) that any line matches; then the common rows; then wrappers."""
    kept = [line for line in lines if benign is None or not benign.search(line)]
    for row in (*rows, *ANY, *wrappers):
        for line in kept:
            match = row.pattern.search(line)
            if match:
                summary = row.summary.format(*(group or "" for group in match.groups()))
                return Cause(row.cause, line.strip(), summary, row.retry)
    if exit_ is not None and exit_.signal == _KILLED:
        summary = "killed from outside (signal 9); the kernel's OOM killer does that too"
        return Cause(CauseClass.OTHER, "", summary)
    said = next((line.strip() for line in reversed(kept) if line.strip()), "")
    how = str(exit_) if exit_ is not None else "it did not end"
    return Cause(CauseClass.OTHER, said, f"ended ({how})" + (f": {said[:200]}" if said else ""))
