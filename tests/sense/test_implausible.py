"""Readings that cannot be are thrown away; one bad sample blinds nobody."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from arbiterd.model.devices import DeviceObservation, GpuState, Memory
from arbiterd.model.events import EventName
from arbiterd.model.reading import Known, Unknown
from arbiterd.quantities import GIB, MIB
from arbiterd.sense import nvml
from arbiterd.sense.nvml import NvmlSnapshot, NvmlSource
from arbiterd.sense.plausible import list_problem, memory_problem
from arbiterd.sim.gpu import SimGpu
from tests.sense.watching import until, watching

TOTAL = 24 * GIB


@pytest.mark.parametrize(
    ("reading", "before", "says"),
    [
        ((TOTAL, 480 * MIB, 4 * GIB, TOTAL - 480 * MIB - 4 * GIB), TOTAL, ""),
        ((TOTAL, 480 * MIB, 0, TOTAL - 500 * MIB), TOTAL, ""),  # rounding
        ((TOTAL, 0, 25 * GIB, 0), TOTAL, "used 25.00 GiB of 24.00 GiB"),
        (
            (TOTAL, 0, 4 * GIB, 4 * GIB),
            TOTAL,
            "reserved + used + free = 8.00 GiB, total = 24.00 GiB",
        ),
        ((0, 0, 0, 0), None, "not all positive"),
        ((TOTAL, 0, -GIB, 25 * GIB), TOTAL, "not all positive"),
        ((12 * GIB, 0, 0, 12 * GIB), TOTAL, "total was 24.00 GiB, is 12.00 GiB"),
        ((12 * GIB, 0, 0, 12 * GIB), None, ""),  # another session: it may have been reset so
    ],
)
def test_memory_readings(reading: tuple[int, int, int, int], before: int | None, says: str) -> None:
    """What can be is left alone; what cannot is named with its numbers."""
    said = memory_problem(Memory(*reading), before)
    assert says in said
    assert bool(said) == bool(says)


@pytest.mark.parametrize(
    ("used", "listed", "wrong"),
    [
        (4 * GIB, [2 * GIB, 2 * GIB], False),
        (4 * GIB, [4 * GIB, 4 * GIB], False),  # counted twice in two lists
        (4 * GIB, [9 * GIB], True),
        (0, [300 * MIB], False),
        (0, [GIB], True),
        (0, [None, None], False),
    ],
)
def test_process_lists(used: int, listed: list[int | None], wrong: bool) -> None:
    """More than twice what is used is no list."""
    assert bool(list_problem(used, listed)) is wrong


@pytest.fixture
def source(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlSource]:
    """A source that has read 2 GiB."""
    gpu.alloc(0, 2 * GIB, pid=os.getpid())
    with watching(gpu, monkeypatch) as one:
        until(one, lambda s: s.devices)
        yield one


def _one(snapshot: NvmlSnapshot) -> DeviceObservation:
    return next(iter(snapshot.devices.values()))


def _used(one: DeviceObservation) -> int | None:
    return one.memory.value.used_bytes if isinstance(one.memory, Known) else None


def test_bad_samples_leave_the_one_before_in_force(source: NvmlSource, gpu: SimGpu) -> None:
    """Never unknown for a moment, never the wrong number; counted, said once, forgotten."""
    total = gpu.memory(0)[0]
    gpu.misread(0, total, 0, 2 * total, 0, count=-1)
    seen: list[DeviceObservation] = []

    def noted(snapshot: NvmlSnapshot) -> bool:
        seen.append(_one(snapshot))
        return seen[-1].dropped > 2

    until(source, noted)
    gpu.misread(0, 0, 0, 0, 0, count=0)
    during = seen[-1]
    assert "implausible memory reading" in during.detail
    assert isinstance(during.memory, Known)
    at = during.memory.at
    until(source, lambda s: _one(s).memory != during.memory)
    after = _one(source.latest(time.monotonic()))
    assert isinstance(after.memory, Known)
    assert after.memory.at > at
    assert after.detail == ""
    assert {(one.state, _used(one)) for one in seen} == {(GpuState.OK, 2 * GIB)}
    (event,) = source.said()
    assert event.name is EventName.READING_DROPPED
    assert "thrown away" in event.message
    assert source.said() == ()


def test_bad_samples_that_last_make_it_unknown(
    source: NvmlSource, gpu: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After BLIND_S without a good one: unknown with the reason, not 0; a good one ends it."""
    source._picture._keep_s = 0.4
    monkeypatch.setattr(nvml, "BLIND_S", 0.4)
    total = gpu.memory(0)[0]
    gpu.misread(0, total // 2, 0, 0, total // 2, count=-1)
    unknown = _one(until(source, lambda s: _one(s).state is GpuState.UNKNOWN))
    assert isinstance(unknown.memory, Unknown)
    assert "total was" in unknown.memory.reason
    assert unknown.dropped > 1
    gpu.misread(0, 0, 0, 0, 0, count=0)
    good = _one(until(source, lambda s: _one(s).state is GpuState.OK))
    assert _used(good) == 2 * GIB


def test_an_implausible_list_leaves_the_memory_known(source: NvmlSource, gpu: SimGpu) -> None:
    """The sum of the processes is four times what is used: the list goes, the memory stays."""
    until(source, lambda s: isinstance(_one(s).processes, Known), processes=True)
    total, reserved, _, _ = gpu.memory(0)
    used = 512 * MIB
    gpu.misread(0, total, reserved, used, total - reserved - used, count=-1)
    one = _one(until(source, lambda s: _one(s).dropped, processes=True))
    assert one.state is GpuState.OK
    assert "implausible process list" in one.detail
    assert isinstance(one.processes, Known)
    assert [p.used_bytes for p in one.processes.value if isinstance(p.used_bytes, Known)]
