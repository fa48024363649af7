"""An NvmlSource over a simulated GPU, ticked as the loop does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from arbiterd.model.devices import DeviceObservation
from arbiterd.sense.nvml import NvmlSnapshot, NvmlSource
from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu
from tests.support import PATIENCE_S


@contextmanager
def watching(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Iterator[NvmlSource]:
    """A started source whose worker meets these cards."""
    for key, value in (
        (STATE_ENV, gpu.path),
        (LIB_ENV, gpu.lib_dir),
        ("LD_LIBRARY_PATH", gpu.lib_dir),
    ):
        monkeypatch.setenv(key, str(value))
    source = NvmlSource(**how)
    source.start()
    try:
        yield source
    finally:
        gpu.clear_faults()
        source.close()


def until(
    source: NvmlSource,
    check: Callable[[NvmlSnapshot], object],
    timeout_s: float = 15.0,
    *,
    processes: bool = False,
) -> NvmlSnapshot:
    """Tick until the snapshot satisfies ``check``: ``timeout_s``, and never less than PATIENCE_S."""
    end = time.monotonic() + max(timeout_s, PATIENCE_S)
    while True:
        now = time.monotonic()
        source.request(now, processes=processes)
        snapshot = source.latest(now)
        if check(snapshot):
            return snapshot
        assert now < end, snapshot
        time.sleep(0.02)


def by_index(snapshot: NvmlSnapshot) -> dict[int, DeviceObservation]:
    """Whole GPUs by their number."""
    return {
        one.device.index: one for one in snapshot.devices.values() if not one.device.parent_uuid
    }


def events_on(source: NvmlSource) -> Callable[[NvmlSnapshot], bool]:
    """Whether the worker has registered for XIDs."""
    return lambda _snapshot: source._events_of is not None
