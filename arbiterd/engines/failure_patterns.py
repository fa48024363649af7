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
# What docker and podman (and the inits they put into a container) say; docs/facts/containers.md
CLIENT = (
    word(
        r"No such image: |: image not known",
        CauseClass.CONFIG,
        "its image is not here; pull it, then restart the backend",
        retry=False,
    ),
    word(
        r"tini \(\d+\)\] exec (\S+) failed|exec: \"([^\"]+)\": |catatonit:\d+\): failed to exec",
        CauseClass.CONFIG,
        "its program {0}{1} cannot be executed in its image",
        retry=False,
    ),
    word(
        r"could not select device driver .*gpu",
        CauseClass.CONFIG,
        "docker cannot hand out GPUs; install the NVIDIA Container Toolkit",
        retry=False,
    ),
    word(
        r"unresolvable CDI devices (\S+)",
        CauseClass.CONFIG,
        "podman knows no device {0}; nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        retry=False,
    ),
    word(
        r"bind source path does not exist: ([^\s.]+)|statfs (\S+): no such file",
        CauseClass.CONFIG,
        "what its container shall see is not there: {0}{1}",
        retry=False,
    ),
    word(
        r"unable to find user (\S+):",
        CauseClass.CONFIG,
        "its image has no user {0}; write a UID",
        retry=False,
    ),
    word(
        r"container name \"/?([^\"]+)\" is already in use",
        CauseClass.OTHER,
        "another container has its name, {0}; remove that one",
    ),
    word(r"port is already allocated", CauseClass.PORT_IN_USE, "its port is taken"),
    word(
        r"Cannot connect to the Docker daemon", CauseClass.OTHER, "docker's daemon does not answer"
    ),
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
    for row in (*rows, *CLIENT, *ANY, *wrappers):
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
