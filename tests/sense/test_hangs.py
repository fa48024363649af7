"""A hang at one card is that card's; the clocks of blindness; workers that cannot be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.model.devices import DeviceObservation, GpuState
from arbiterd.model.reading import Known
from arbiterd.sense import nvml
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sense.nvml_child import Child
from arbiterd.sim.gpu import SimGpu
from tests.sense.watching import by_index, until, watching
from tests.support import wait_until

TICK_S = 0.02


@pytest.fixture
def pair(sim_lib: Path, tmp_path: Path) -> Iterator[SimGpu]:
    """Two cards."""
    one = SimGpu.create(tmp_path / "pair", sim_lib, ("rtx4090-24g", "rtx4090-24g"))
    yield one
    one.close()


def _tick(source: NvmlSource) -> dict[int, DeviceObservation]:
    now = time.monotonic()
    source.request(now, processes=False)
    seen = by_index(source.latest(now))
    time.sleep(TICK_S)
    return seen


@pytest.mark.parametrize("hung", [0, 1])
def test_a_hang_at_one_card_leaves_the_other_readable(
    pair: SimGpu, monkeypatch: pytest.MonkeyPatch, hung: int
) -> None:
    """The real clocks: the healthy card stays readable, the hung one is unknown after BLIND_S; past the
    kill and a new try of the hung one, too. The hang over, both are read by one worker again.
    """
    well = 1 - hung
    with watching(pair, monkeypatch) as source:
        until(source, lambda s: len(s.devices) == 2)
        pair.fault("nvmlDevice", hang_ms=600_000, device=hung)
        began = time.monotonic()
        ticks = unread = 0
        tried: set[int] = set()
        while time.monotonic() - began < nvml.KILL_S + nvml.LATE_S + nvml.BACKOFF_S + 1.5:
            seen = _tick(source)
            healthy = seen[well]
            ticks += 1
            unread += healthy.state is not GpuState.OK or not isinstance(healthy.memory, Known)
            hang = source._hangs.get(hung)
            if hang is not None and hang.child is not None:
                tried.add(hang.child.process.pid)
            if time.monotonic() - began > nvml.BLIND_S + 0.5:
                assert seen[hung].state is GpuState.HUNG
                assert "hung for" in seen[hung].detail
        # A busy machine may keep any worker for 3 s; a hang that hid this card would hide it for most
        # of the time.
        assert unread < ticks / 4, (unread, ticks)
        assert len(tried) >= 2, "the one set aside, and a new try after the back-off"
        assert source.latest(time.monotonic()).nvml == ""
        pair.clear_faults()
        until(
            source,
            lambda s: all(one.state is GpuState.OK for one in s.devices.values()),
        )
        assert source._hangs == {}


def test_a_stall_that_ends_in_time_costs_no_worker(
    pair: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, set aside, then it answers: both cards are read again, nothing was killed for it."""
    monkeypatch.setattr(nvml, "LATE_S", 0.2)
    with watching(pair, monkeypatch) as source:
        until(source, lambda s: len(s.devices) == 2)
        pair.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000, device=1)
        until(source, lambda s: source._hangs)
        slow = source._hangs[1].child
        assert slow is not None
        assert slow.process.poll() is None
        pair.clear_faults()
        until(source, lambda s: not source._hangs)
        before = by_index(source.latest(time.monotonic()))[1].memory
        until(source, lambda s: by_index(s)[1].memory != before)


def test_a_hang_at_the_very_first_sample_hides_only_that_card(
    pair: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows yet how many cards there are: after KILL_S another worker tries without it."""
    monkeypatch.setattr(nvml, "KILL_S", 1.0)
    pair.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000, device=0)
    with watching(pair, monkeypatch) as source:
        seen = by_index(until(source, lambda s: s.devices))
        assert {n: one.state for n, one in seen.items()} == {1: GpuState.OK}
        pair.clear_faults()
        until(source, lambda s: set(by_index(s)) == {0, 1})


def _waits(worker: Child) -> bool:
    """It is in the card's calls, and not only for the moment of a look."""
    asked = worker.asked_at
    return asked is not None and time.monotonic() - asked > 0.2 and worker.where() == 0


def test_late_blind_killed_at_their_times(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """One card: said to be late after 1 s, unknown after 3 s, another worker after 5 s."""
    with watching(gpu, monkeypatch) as source:
        until(source, lambda s: s.devices)
        worker = source._child
        assert worker is not None
        wait_until(lambda: worker.asked_at is None, what="the last answer before the fault")
        gpu.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000)
        until(source, lambda s: _waits(worker))
        asked = worker.asked_at
        at = by_index(source.latest(time.monotonic()))[0].memory
        assert asked is not None
        assert isinstance(at, Known)
        step = 0.01
        sampled = source._sample_at
        assert sampled is not None
        late, blind, kill = sampled + nvml.LATE_S, at.at + nvml.BLIND_S, asked + nvml.KILL_S
        assert source.latest(late - step).nvml == ""
        assert source.latest(late + step).nvml.startswith("late")
        for now, state in ((blind - step, GpuState.OK), (blind + step, GpuState.HUNG)):
            assert by_index(source.latest(now))[0].state is state, "late is not blind"
        source.request(kill - step, processes=False)
        assert source._child is worker
        source.request(kill + step, processes=False)
        assert source._child is not worker
        assert worker.process.wait(60) == -signal.SIGKILL


def test_the_back_off_doubles_up_to_its_limit(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 s to 60 s in life; here in milliseconds. An answer resets it."""
    assert (nvml.BACKOFF_S, nvml.BACKOFF_MAX_S) == (1.0, 60.0)
    monkeypatch.setattr(nvml, "BACKOFF_MAX_S", 0.04)
    gpu.init_fails(9)
    with watching(gpu, monkeypatch) as source:
        source._backoff_s = 0.01
        steps: list[float] = []

        def capped(_snapshot: object) -> bool:
            if not steps or steps[-1] != source._backoff_s:
                steps.append(source._backoff_s)
            return source._backoff_s == nvml.BACKOFF_MAX_S

        snapshot = until(source, capped)
        assert [step for step in steps if step in (0.01, 0.02, 0.04)] == steps
        assert "Driver Not Loaded" in snapshot.nvml
        gpu.init_fails(0)
        until(source, lambda s: s.devices)
        assert source._backoff_s == nvml.BACKOFF_S


def test_at_most_three_workers_that_cannot_be_killed(
    gpu: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D state at the process' seam: kill does nothing. Three are left behind, no fourth is started,
    and the reason says what helps.
    """
    for name, value in (("KILL_S", 0.15), ("BACKOFF_S", 0.01), ("_INIT_S", 0.6)):
        monkeypatch.setattr(nvml, name, value)
    started: list[Child] = []
    real_kill = Child.kill

    def unkillable(child: Child) -> None:
        started.append(child)

    monkeypatch.setattr(Child, "kill", unkillable)
    gpu.fault("nvmlInit", hang_ms=600_000)
    try:
        with watching(gpu, monkeypatch) as source:
            source._backoff_s = 0.01
            snapshot = until(source, lambda s: "cannot be killed" in s.nvml)
            assert "reboot" in snapshot.nvml
            assert len(source._stuck) == nvml.MAX_STUCK
            before = len({child.process.pid for child in started})
            for _ in range(20):
                _tick(source)
            assert source._child is None
            assert len({child.process.pid for child in started}) == before == nvml.MAX_STUCK
            assert all(one.process.poll() is None for one in started)
    finally:
        for child in started:
            real_kill(child)


def test_hung_cards_leave_room_for_the_healthy_ones_worker(
    pair: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tries of a hung card that cannot be killed end one short of the limit."""
    for name, value in (("LATE_S", 0.3), ("KILL_S", 0.6), ("BACKOFF_S", 0.01)):
        monkeypatch.setattr(nvml, name, value)
    killed: list[Child] = []
    real_kill = Child.kill

    def unkillable(child: Child) -> None:
        killed.append(child)

    with watching(pair, monkeypatch) as source:
        until(source, lambda s: len(s.devices) == 2)
        pair.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000, device=1)
        monkeypatch.setattr(Child, "kill", unkillable)
        try:
            until(source, lambda s: len(source._stuck) == nvml.MAX_STUCK - 1)
            source._hangs[1].retry_at = 0.0
            for _ in range(10):
                assert _tick(source)[0].state is GpuState.OK
            assert source._hangs[1].child is None
            assert len(source._stuck) == nvml.MAX_STUCK - 1
            assert source._child is not None
        finally:
            monkeypatch.setattr(Child, "kill", real_kill)
            for child in killed:
                real_kill(child)


def test_the_worker_tells_where_it_is(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a device while its calls hang, nowhere between samples, gone with its owner's end."""
    with watching(gpu, monkeypatch) as source:
        until(source, lambda s: s.devices)
        child = source._child
        assert child is not None
        until(source, lambda s: child.asked_at is None and child.where() == -1)
        gpu.fault("nvmlDeviceGetMemoryInfo_v2", hang_ms=600_000)
        until(source, lambda s: child.where() == 0)
        os.kill(child.process.pid, signal.SIGKILL)
        child.reader.join(5)
        assert child.where() == -1
