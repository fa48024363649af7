"""A suspicious sample is read again at once, with the processes; the facts behind core's vetoes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from arbiterd.model.devices import DeviceObservation
from arbiterd.model.reading import Known
from arbiterd.quantities import GIB, MIB
from arbiterd.sense import nvml_worker
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sim.gpu import SimGpu
from tests.sense.watching import events_on, until, watching
from tests.support import wait_until


class Bell:
    """Counts how often the loop was woken."""

    def __init__(self) -> None:
        self.rung = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        """Ring."""
        with self._changed:
            self.rung += 1
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Until it has rung so often."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.rung >= count, 10), self.rung


@pytest.fixture
def bell() -> Bell:
    """Of the source below."""
    return Bell()


@pytest.fixture
def source(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch, bell: Bell) -> Iterator[NvmlSource]:
    """A source with a sample behind it and no order out."""
    with watching(gpu, monkeypatch, on_change=bell) as one:
        until(one, lambda s: s.devices)
        until(one, events_on(one))
        _settle(one)
        yield one


def _settle(source: NvmlSource) -> None:
    child = source._child
    assert child is not None
    wait_until(lambda: child.asked_at is None, 10, "the order to be answered")


def _device(source: NvmlSource) -> DeviceObservation:
    return next(iter(source.latest(time.monotonic()).devices.values()))


def _at(one: DeviceObservation) -> float:
    assert isinstance(one.memory, Known)
    return one.memory.at


def _pids(one: DeviceObservation) -> list[int]:
    return [p.pid for p in one.processes.value] if isinstance(one.processes, Known) else []


def _once(source: NvmlSource, **how: bool) -> DeviceObservation:
    """One order of the loop, without processes unless asked for."""
    source.request(time.monotonic(), **{"processes": False, **how})
    _settle(source)
    return _device(source)


def test_a_big_drop_is_read_twice_with_the_processes(
    source: NvmlSource, gpu: SimGpu, bell: Bell
) -> None:
    """One order, two wakes, two samples at least 25 ms apart; the second names who did it."""
    before = bell.rung
    gpu.alloc(0, GIB, pid=os.getpid())
    source.request(time.monotonic(), processes=False)
    bell.wait(before + 1)
    first = _device(source)
    bell.wait(before + 2)
    second = _device(source)
    assert isinstance(second.memory, Known)
    assert second.memory.value.used_bytes == GIB
    assert _pids(second) == [os.getpid()]
    if _at(first) != _at(second):  # else this thread woke up after the second sample
        assert _at(second) - _at(first) >= nvml_worker.AGAIN_S
        assert isinstance(first.memory, Known)
        assert first.memory.value.used_bytes == GIB


def test_a_limit_is_watched(source: NvmlSource, gpu: SimGpu, bell: Bell) -> None:
    """A small step below it is looked at twice, staying below is not news, nor is another step."""
    uuid = gpu.uuids()[0]
    source.watch({uuid: gpu.memory(0)[3] - 8 * MIB})
    _once(source)
    quiet = bell.rung
    handle = gpu.alloc(0, 4 * MIB, pid=os.getpid())
    _once(source)
    assert bell.rung == quiet
    gpu.resize(handle, 12 * MIB)
    source.request(time.monotonic(), processes=False)
    bell.wait(quiet + 2)
    first = _at(_device(source))
    gpu.resize(handle, 16 * MIB)
    assert _at(_once(source)) > first
    assert bell.rung == quiet + 2


def test_a_jump_brings_the_list_a_calm_sample_does_not(
    source: NvmlSource, gpu: SimGpu, bell: Bell
) -> None:
    """More than 64 MiB up or down: the same sample says who. Below: the list stays the old object."""
    _once(source, processes=True)
    calm, rung = _device(source).processes, bell.rung
    handle = gpu.alloc(0, 32 * MIB, pid=os.getpid())
    assert _once(source).processes is calm
    gpu.resize(handle, 132 * MIB)
    assert _pids(_once(source)) == [os.getpid()]
    gpu.free(handle)
    assert _pids(_once(source)) == []
    assert bell.rung == rung, "not suspicious: nobody is woken"


def test_utilisation_is_read_when_ordered(source: NvmlSource, gpu: SimGpu) -> None:
    """A listed process that computes, one that does not, and None where nobody asked."""
    gpu.alloc(0, GIB, pid=os.getpid())
    gpu.alloc(0, GIB, pid=os.getppid())
    gpu.busy(0, os.getpid(), 93)

    def told(one: DeviceObservation) -> dict[int, int | None]:
        assert isinstance(one.processes, Known)
        return {p.pid: p.sm_percent for p in one.processes.value}

    until(source, lambda s: len(_pids(next(iter(s.devices.values())))) == 2, processes=True)
    _settle(source)
    assert told(_once(source, processes=True)) == {os.getpid(): None, os.getppid(): None}
    assert told(_once(source, utilisation=True)) == {os.getpid(): 93, os.getppid(): 0}
    gpu.busy(0, os.getpid(), 0)
    assert told(_once(source, utilisation=True)) == {os.getpid(): 0, os.getppid(): 0}


def test_the_recovery_action_is_read_after_an_xid(source: NvmlSource, gpu: SimGpu) -> None:
    """Field 230, not only every ten seconds."""
    assert _device(source).recovery_action == 0
    gpu.recovery_action(0, 1)
    _once(source)
    assert _device(source).recovery_action == 0, "not yet due"
    gpu.xid(0, 154)
    until(source, lambda s: next(iter(s.devices.values())).recovery_action == 1, 5)
