"""Readings that cannot be: thrown away, with the reason."""

from __future__ import annotations

from collections.abc import Iterable

from arbiterd.model.devices import Memory
from arbiterd.quantities import MIB, format_size

SUM_SLACK_BYTES = 64 * MIB  # reserved + used + free = total, but for rounding
SUM_SLACK_FRACTION = 0.01
LIST_FACTOR = 2  # processes may be counted twice; the list and the memory are not read at once
LIST_SLACK_BYTES = 512 * MIB


def memory_problem(memory: Memory, total_before: int | None) -> str:
    """Why this reading cannot be true, "" when it can. ``total_before``: in this NVML session."""
    parts = (memory.reserved_bytes, memory.used_bytes, memory.free_bytes)
    total = memory.total_bytes
    if total <= 0 or min(parts) < 0:
        return f"total {total} B, reserved, used and free {parts} B: not all positive"
    if memory.used_bytes > total:
        return f"used {format_size(memory.used_bytes)} of {format_size(total)}"
    if abs(sum(parts) - total) > max(SUM_SLACK_BYTES, int(total * SUM_SLACK_FRACTION)):
        return f"reserved + used + free = {format_size(sum(parts))}, total = {format_size(total)}"
    if total_before is not None and total != total_before:
        return f"total was {format_size(total_before)}, is {format_size(total)}"
    return ""


def list_problem(used_bytes: int, processes: Iterable[int | None]) -> str:
    """Why these processes cannot hold what they are said to hold, "" when they can."""
    listed = sum(size for size in processes if size is not None)
    if listed > LIST_FACTOR * used_bytes + LIST_SLACK_BYTES:
        sizes = f"{format_size(listed)} between them, {format_size(used_bytes)} are used"
        return f"the listed processes hold {sizes}"
    return ""
