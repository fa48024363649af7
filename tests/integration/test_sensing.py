"""What the senses bring to the running daemon."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from arbiterd.act.executor import Executor
from arbiterd.config import load
from arbiterd.core.mode.config_state import ConfigState
from arbiterd.core.state import State
from arbiterd.daemon import startup
from arbiterd.daemon.loop import Inbox, Loop, Parts
from arbiterd.model.devices import XidEvent
from arbiterd.model.reading import Known
from arbiterd.quantities import GIB
from arbiterd.sense.health import Prober
from arbiterd.sense.host import HostFactsSource
from arbiterd.settings.history import ConfigFiles
from arbiterd.settings.owner import SettingsOwner
from arbiterd.sim.gpu import SimGpu
from tests.sense.watching import events_on, until, watching
from tests.support import wait_until
from tests.support.host import Host, Json

VLLM_ONLY = '[modes.A]\nvllm = { gpu = 0, memory = "55%" }\n'


def test_foreign_memory_and_bad_readings(host: Host) -> None:
    """Of one vLLM, whose pids stay."""
    host.write(VLLM_ONLY, only=("vllm",))
    host.start()
    host.wait_ready()
    pids = host.backend("vllm")["pids"]
    _bad_reading(host)
    _foreign_memory(host)
    assert host.backend("vllm")["pids"] == pids
    assert not host.events("driver_hung")


def _holds(row: Json, pid: int) -> bool:
    """Whether the stranger's pid is told and the rows add up to what the card says is used."""
    used = [one["used"] for one in row["ledger"] if "used" in one]
    foreign = next(one for one in row["ledger"] if one["holder"] == "foreign")
    return bool(
        foreign["pids"] == [pid] and None not in used and sum(used) == row["memory"]["used"]
    )


def _bad_reading(host: Host) -> None:
    """In the journal, counted; the card stays ok."""
    total = host.gpu.memory(0)[0]
    host.gpu.misread(0, total, 0, 2 * total, 0, count=4)
    event = host.wait_event("reading_dropped")
    assert "used" in event["MESSAGE"]
    assert host.gpu_row()["state"] == "ok"


def _foreign_memory(host: Host) -> None:
    """From the allocation to the API naming the bytes foreign, by their pid, three times; the ledger adds
    up. A second is ten ticks here: counted in them it does not depend on how busy the machine is.
    """

    def seen() -> tuple[int, int]:
        """(foreign bytes, the tick that tells them)."""
        found = host.status()
        rows = [r for gpu in found["gpus"] for r in gpu["ledger"] if r["holder"] == "foreign"]
        return sum(int(row["used"] or 0) for row in rows), int(found["loop"]["tick"])

    def named() -> int:
        """The first tick seen that names the stranger, 0 for not yet."""
        bytes_, tick = seen()
        return tick if bytes_ == GIB else 0

    took = []
    for _ in range(3):
        host.wait(lambda: seen()[0] == 0, "calm", 60)
        handle = host.gpu.alloc(0, GIB, pid=os.getpid())
        began = seen()[1]
        took.append(wait_until(named, 60, "the stranger to be named") - began)
        host.wait(lambda: _holds(host.gpu_row(), os.getpid()), "its pid in a ledger that adds up")
        host.gpu.free(handle)
    assert statistics.median(took) <= 10, took


def test_a_backend_stays_on_its_card_when_another_falls_off(pair: Host) -> None:
    """GPU 0 is gone for NVML and CUDA: GPU 1 keeps its number, its backend its device and pids."""
    pair.write('[modes.A]\nvllm = { gpu = 1, memory = "55%" }\n', only=("vllm",))
    pair.start()
    pair.wait_ready()
    first, second = pair.gpu.uuids()
    pids = pair.backend("vllm")["pids"]
    assert pair.backend("vllm")["gpu"] == [second]
    pair.gpu.lose(0, gone=True)
    event = pair.wait_event("gpu_renumbered")  # after the new session, 10 s
    assert "gpu = 1 still means this card" in event["MESSAGE"]
    assert {g["uuid"]: g["index"] for g in pair.status()["gpus"]} == {first: 0, second: 1}
    assert pair.backend("vllm")["gpu"] == [second]
    assert pair.backend("vllm")["pids"] == pids


def test_a_tick_sees_each_xid_once(
    gpu: SimGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real parts, ticked by hand: the observation after an XID has it, the next one has not."""
    config = tmp_path / "gpu-arbiter.toml"
    config.write_text(
        f'mode = "A"\n[arbiter]\nruntime_dir = "{tmp_path}/run"\nstate_dir = "{tmp_path}/state"\n'
        'launcher = "direct"\n[gateway]\nenabled = false\n[backends]\n[modes.A]\n'
    )
    settings = load(config, {}).settings
    launcher = startup.make_launcher(settings, lambda: None)
    prober = Prober(lambda: None)
    facts = HostFactsSource(launcher.owner_of)
    executor = Executor(launcher, lambda _action: None, lambda: None, dry_run=True)
    try:
        with watching(gpu, monkeypatch) as source:
            until(source, events_on(source))
            parts = Parts(
                launcher,
                executor,
                source,
                prober,
                facts,
                publish=lambda _seen, _events: None,
                keep=lambda _carry: None,
            )
            files = ConfigFiles(tmp_path / "run")
            owner = SettingsOwner(ConfigState(settings, settings), files, lambda one: one)
            loop = Loop(parts, owner, State(run="test"), lambda: None)
            uuid = gpu.uuids()[0]
            seen: list[XidEvent] = []
            gpu.xid(0, 94)
            gpu.xid(0, 63)
            end = time.monotonic() + 10
            while len(seen) < 2 and time.monotonic() < end:
                observation = loop.tick(Inbox()).observation
                seen += observation.xids
            assert [(one.uuid, one.code) for one in seen] == [(uuid, 94), (uuid, 63)]
            assert loop.tick(Inbox()).observation.xids == ()
            assert source._watch[uuid] >= 256 << 20, "the loop has the critical line watched"
            device = observation.devices[uuid]
            assert isinstance(device.memory, Known)
    finally:
        prober.close()
        facts.close()
        executor.close()
        launcher.close()
