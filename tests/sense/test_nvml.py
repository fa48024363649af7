"""The NVML source: deadlines, blindness, back-off, lost cards; never a wait in the loop's thread."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arbiterd.model.devices import GpuState
from arbiterd.model.reading import Known, Unknown
from arbiterd.quantities import GIB
from arbiterd.sense import nvml
from arbiterd.sense.nvml import NvmlSnapshot, NvmlSource
from arbiterd.sense.processes import attribute
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, Flag, SimGpu
from tests.support import PATIENCE_S, wait_until


@pytest.fixture
def source(
    gpu: SimGpu, sim_lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NvmlSource]:
    """A source whose worker meets the simulated card."""
    for key, value in (
        (STATE_ENV, tmp_path / "gpu"),
        (LIB_ENV, sim_lib),
        ("LD_LIBRARY_PATH", sim_lib),
    ):
        monkeypatch.setenv(key, str(value))
    one = NvmlSource()
    one.start()
    yield one
    one.close()


def _until(
    source: NvmlSource, check: Callable[[NvmlSnapshot], object], timeout_s: float = 15.0
) -> NvmlSnapshot:
    """Tick it as the loop does until the snapshot satisfies ``check``."""
    end = time.monotonic() + max(timeout_s, PATIENCE_S)
    while True:
        now = time.monotonic()
        source.request(now, processes=True)
        snapshot = source.latest(now)
        if check(snapshot):
            return snapshot
        assert now < end, snapshot
        time.sleep(0.02)


def _one(snapshot: NvmlSnapshot) -> object:
    return next(iter(snapshot.devices.values()), None)


def test_a_sample_has_memory_and_processes(source: NvmlSource, gpu: SimGpu) -> None:
    """Attributed by the launcher's answer; a stranger keeps its names."""
    gpu.alloc(0, 2 * GIB, pid=os.getpid())
    snapshot = _until(
        source,
        lambda s: any(
            isinstance(d.processes, Known) and d.processes.value for d in s.devices.values()
        ),
    )
    ours = attribute(snapshot, lambda _pid: ("vllm", "unit"))
    foreign = attribute(snapshot, lambda _pid: None)
    for seen, holder in ((ours, "vllm"), (foreign, "")):
        device = next(iter(seen.values()))
        assert isinstance(device.memory, Known)
        assert device.memory.value.used_bytes == 2 * GIB
        assert isinstance(device.processes, Known)
        process = device.processes.value[0]
        assert (process.pid, process.holder) == (os.getpid(), holder)
        assert process.ref is not None
        assert process.command


def test_the_dead_stay_whose_they_were(gpu: SimGpu, source: NvmlSource) -> None:
    """An engine that dies between the list and the look at /proc is no stranger."""
    process = subprocess.Popen(["/bin/sleep", "600"])
    gpu.alloc(0, GIB, pid=process.pid)

    def listed(snapshot: NvmlSnapshot) -> bool:
        lists = [d.processes for d in snapshot.devices.values()]
        return any(isinstance(one, Known) and one.value for one in lists)

    snapshot = _until(source, listed)
    alive = attribute(snapshot, lambda _pid: ("vllm", "unit"))
    process.kill()
    process.wait()
    dead = attribute(snapshot, lambda _pid: None, alive)
    unknown = attribute(snapshot, lambda _pid: None)
    for seen, holder in ((dead, "vllm"), (unknown, "")):
        found = next(iter(seen.values())).processes
        assert isinstance(found, Known)
        assert [(one.pid, one.holder, one.ref) for one in found.value] == [
            (process.pid, holder, None)
        ]


def test_not_available_is_unknown_not_zero(source: NvmlSource, gpu: SimGpu) -> None:
    """WSL2 and vGPU say N/A."""
    gpu.alloc(0, GIB, pid=os.getpid(), flags=Flag.COMPUTE | Flag.MEM_NA)
    snapshot = _until(
        source,
        lambda s: any(
            isinstance(d.processes, Known) and d.processes.value for d in s.devices.values()
        ),
    )
    device = next(iter(snapshot.devices.values()))
    assert isinstance(device.processes, Known)
    assert isinstance(device.processes.value[0].used_bytes, Unknown)


def test_a_hang_makes_readings_unknown_then_the_worker_is_replaced(
    source: NvmlSource, gpu: SimGpu
) -> None:
    """request() and latest() stay instant; after BLIND_S unknown; after KILL_S another worker."""
    _until(source, lambda s: s.devices)
    gpu.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000)
    slowest = 0.0
    began = time.monotonic()
    while time.monotonic() - began < nvml.BLIND_S + 1:
        at = time.monotonic()
        source.request(at, processes=True)
        snapshot = source.latest(at)
        slowest = max(slowest, time.monotonic() - at)
        time.sleep(0.02)
    assert slowest < 0.25, "the loop waited for NVML"
    device = next(iter(snapshot.devices.values()))
    assert device.state is GpuState.HUNG
    assert isinstance(device.memory, Unknown)
    assert "hung" in snapshot.nvml
    gpu.clear_faults()
    _until(
        source, lambda s: not s.nvml and all(d.state is GpuState.OK for d in s.devices.values()), 20
    )


def test_a_killed_worker_is_replaced(source: NvmlSource) -> None:
    """A SIGSEGV inside libnvidia-ml would look the same."""
    _until(source, lambda s: s.devices)
    assert source._child is not None
    os.kill(source._child.process.pid, signal.SIGKILL)
    _until(source, lambda s: "ended" in s.nvml, 5)
    _until(source, lambda s: not s.nvml, 10)


def test_a_lost_card_is_lost_and_found_again(
    source: NvmlSource, gpu: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new NVML session sees it again."""
    monkeypatch.setattr(nvml, "LOST_REINIT_S", 0.3)
    _until(source, lambda s: s.devices)
    gpu.lose(0)
    snapshot = _until(
        source, lambda s: any(d.state is GpuState.LOST for d in s.devices.values()), 5
    )
    assert isinstance(next(iter(snapshot.devices.values())).memory, Unknown)
    gpu.restore(0)
    _until(source, lambda s: all(d.state is GpuState.OK for d in s.devices.values()), 10)


def test_a_missing_library_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is tried again with back-off."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    source = NvmlSource()
    source.start()
    try:
        snapshot = _until(source, lambda s: s.nvml, 10)
        assert "Library Not Found" in snapshot.nvml
        assert snapshot.devices == {}
        began = time.monotonic()
        wait_until(lambda: source._next_start > began - 5, 5, "the next try to be set for later")
    finally:
        source.close()


def test_the_worker_dies_with_us(source: NvmlSource) -> None:
    """Closing ends it at once; nothing is left."""
    _until(source, lambda s: s.devices)
    assert source._child is not None
    process = source._child.process
    source.close()
    assert process.wait(5) is not None


def test_one_broken_card_does_not_hide_the_other(
    sim_lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNKNOWN_ERROR about GPU 1: GPU 0 goes on."""
    pair = SimGpu.create(tmp_path / "pair", sim_lib, ("rtx4090-24g", "rtx4090-24g"))
    for key, value in (
        (STATE_ENV, tmp_path / "pair"),
        (LIB_ENV, sim_lib),
        ("LD_LIBRARY_PATH", sim_lib),
    ):
        monkeypatch.setenv(key, str(value))
    source = NvmlSource()
    source.start()
    try:
        _until(source, lambda s: len(s.devices) == 2)
        pair.fault("nvmlDeviceGetMemoryInfo_v2", rc=999, device=1)
        snapshot = _until(
            source, lambda s: any(d.state is GpuState.FAULT for d in s.devices.values()), 5
        )
        states = {d.device.index: d.state for d in snapshot.devices.values()}
        assert states == {0: GpuState.OK, 1: GpuState.FAULT}
    finally:
        source.close()
        pair.close()
