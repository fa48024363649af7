"""XIDs: from NVML, from the kernel log, and once each where both tell of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arbiterd.linux import procfs
from arbiterd.model.devices import XidEvent
from arbiterd.sense import kernel_log, xids
from arbiterd.sense.kernel_log import KernelLog
from arbiterd.sense.nvml import NvmlSource
from arbiterd.sense.xids import XidFeed
from arbiterd.sim.gpu import SimGpu
from tests.sense.watching import events_on, until, watching
from tests.support import wait_until

GPU, SLICE = "GPU-a", "MIG-a"
LINE = "NVRM: Xid (PCI:0000:61:00): {code}, pid={pid}, name=python3, Ch 0000000a"


def _resolve(bus: tuple[int, int, int], instance: int | None) -> str:
    if bus != (0, 0x61, 0):
        return ""
    return SLICE if instance == 3 else GPU


@pytest.fixture
def feed() -> XidFeed:
    """A feed that knows one card with one slice."""
    return XidFeed(_resolve, lambda: None)


def _collect(source: NvmlSource, count: int) -> list[XidEvent]:
    found: list[XidEvent] = []

    def enough(_snapshot: object) -> bool:
        found.extend(source.xids(time.monotonic()))
        return len(found) >= count

    until(source, enough)
    return found


def test_an_event_of_nvml_wakes_the_loop_and_is_told_once(
    gpu: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a kernel log: at once, no pid."""
    woken = threading.Event()
    with watching(gpu, monkeypatch, on_change=woken.set) as source:
        until(source, events_on(source))
        woken.clear()
        gpu.xid(0, 31, pid=os.getpid())
        assert woken.wait(5)
        (event,) = source.xids(time.monotonic())
        assert (event.uuid, event.code, event.pid) == (gpu.uuids()[0], 31, 0)
        gpu.xid(0, 79)
        assert [one.code for one in _collect(source, 1)] == [79]


def test_two_sources_tell_each_xid_once_with_its_pid(
    gpu: SimGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel log through a real follower: as many events as XIDs, every one with its pid."""
    monkeypatch.setattr(xids, "HOLD_S", 30.0)  # a slow machine must not make it pid 0
    gpu.kernel_log.write_text('{"MESSAGE": "usb 1-1: new device"}\n')
    follow = ("tail", "-n", "1", "-F", str(gpu.kernel_log))
    with watching(gpu, monkeypatch, kernel_log=follow) as source:
        until(source, events_on(source))
        wait_until(lambda: source._xids.kernel_heard, 10, "the follower to be heard")
        posted = [(code, 1000 + n) for n, code in enumerate((31, 31, 13, 31, 43, 13))]
        for code, pid in posted:
            gpu.xid(0, code, pid=pid)
        found = _collect(source, len(posted))
        gpu.xid(0, 92, pid=7)
        found += _collect(source, 1)
        assert sorted((one.code, one.pid) for one in found) == sorted([*posted, (92, 7)])
        assert all("NVRM: Xid" in one.detail for one in found)


def test_a_slices_xid_names_the_slice(
    sim_lib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event comes at the parent and is told of the MIG device."""
    gpu = SimGpu.create(tmp_path / "gpu", sim_lib, ("a100-40g",))
    try:
        gpu.set_mig(0, ["3g.20gb", "1g.5gb"])
        with watching(gpu, monkeypatch) as source:
            until(source, events_on(source))
            gpu.xid(0, 94, mig=1)
            assert _collect(source, 1)[0].uuid == gpu.mig_uuids(0)[1]
            pci = (0, 0x10, 0)
            assert source._resolve(pci, 8) == gpu.mig_uuids(0)[1]
            assert source._resolve(pci, None) == gpu.uuids()[0]
    finally:
        gpu.close()


def test_a_hung_wait_does_not_hang_sampling(gpu: SimGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread sits in the driver; samples and their ages go on."""
    gpu.fault("nvmlEventSetWait", hang_ms=600_000)
    with watching(gpu, monkeypatch) as source:
        first = until(source, lambda s: s.devices)
        before = next(iter(first.devices.values())).memory
        until(source, lambda s: next(iter(s.devices.values())).memory != before)
        assert source._child is not None


def test_the_wait_does_not_spin_while_a_gpu_is_lost(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """EventSetWait answers GPU_IS_LOST at once each time: said once, then a pause."""
    with subprocess.Popen(
        [sys.executable, "-m", "arbiterd.sense.nvml_worker", str(os.getpid())],
        env=sim_env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        said: list[dict[str, object]] = []

        def sample(number: int) -> None:
            assert worker.stdin is not None
            assert worker.stdout is not None
            order = {"seq": number, "processes": False, "events": True}
            worker.stdin.write(json.dumps(order) + "\n")
            worker.stdin.flush()
            while True:
                said.append(json.loads(worker.stdout.readline()))
                if said[-1].get("seq") == number:
                    return

        number = 0
        while not any(one.get("events") is True for one in said):
            sample(number := number + 1)
        gpu.lose(0)
        while not any(one.get("events") is False for one in said):
            sample(number := number + 1)
        for _ in range(300):
            sample(number := number + 1)
        assert sum(one.get("events") is False for one in said) == 1
        assert not any("xid" in one for one in said)
        worker.stdin.close()


@pytest.mark.parametrize("kernel_first", [True, False])
def test_both_orders_give_one_event(feed: XidFeed, kernel_first: bool) -> None:
    """Whoever comes first; the event has NVML's quickness or the kernel's pid, never two."""
    feed.kernel_heard = True
    line = LINE.format(code=45, pid=1496200)
    if kernel_first:
        feed.from_kernel(line, 10.0)
        told = [*feed.take(10.0)]
        feed.from_nvml(GPU, GPU, 45, 10.1)
    else:
        feed.from_nvml(GPU, GPU, 45, 10.0)
        told = [*feed.take(10.1)]
        assert told == []  # waits for the pid
        feed.from_kernel(line, 10.1)
    told += feed.take(10.2)
    assert told == [XidEvent(GPU, 45, 10.0, 1496200, line)]
    assert feed.take(20.0) == ()


def test_a_silent_kernel_log_holds_nothing_up(feed: XidFeed) -> None:
    """Never heard: told at once. Heard, but this line does not come: after HOLD_S."""
    feed.from_nvml(GPU, GPU, 79, 10.0)
    assert [one.code for one in feed.take(10.0)] == [79]
    feed.kernel_heard = True
    feed.from_nvml(GPU, GPU, 31, 20.0)
    assert feed.take(20.0 + xids.HOLD_S / 2) == ()
    assert [one.code for one in feed.take(20.1 + xids.HOLD_S)] == [31]
    feed.from_kernel(LINE.format(code=31, pid=5), 20.5)  # late: completes, is not told again
    assert feed.take(21.0) == ()


def test_a_second_xid_of_the_same_kind_is_its_own(feed: XidFeed) -> None:
    """Two faults within the window, each told by both: two events."""
    for at in (10.0, 10.5):
        feed.from_nvml(GPU, GPU, 13, at)
        feed.from_kernel(LINE.format(code=13, pid=int(at * 10)), at + 0.1)
    feed.from_kernel(LINE.format(code=13, pid=9), 30.0)  # much later, by the log alone
    assert [one.pid for one in feed.take(30.0)] == [100, 105, 9]


def test_what_nvml_cannot_name_the_kernel_log_names(feed: XidFeed) -> None:
    """999 is NVML's word for an unknown XID; a slice named by one of the two is kept."""
    feed.kernel_heard = True
    feed.from_nvml(SLICE, GPU, 999, 10.0)
    feed.from_kernel(LINE.format(code=154, pid="'<unknown>'"), 10.1)
    (event,) = feed.take(10.2)
    assert (event.uuid, event.code, event.pid) == (SLICE, 154, 0)


def test_an_xid_of_an_unlisted_card_is_not_lost(feed: XidFeed) -> None:
    """It waits for the first sample, then is told without a name."""
    feed.from_kernel("NVRM: Xid (PCI:0001:03:00): 79, pid='<unknown>', name=<unknown>", 10.0)
    assert feed.take(10.0) == ()
    (event,) = feed.take(10.1 + xids.NAMELESS_S)
    assert (event.uuid, event.code) == ("", 79)
    assert "0001:03:00" in event.detail


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (LINE.format(code=45, pid=1496200), (GPU, 45, 1496200)),
        ("[ 12.3] NVRM: Xid (PCI:0000:61:00): 13, pid='<unknown>', name=<unknown>", (GPU, 13, 0)),
        ("NVRM: Xid (PCI:0000:61:00): 79, GPU has fallen off the bus.", (GPU, 79, 0)),
        ("NVRM: Xid (PCI:0000:61:00 GPU-I:03): 94, pid=77, name=x", (SLICE, 94, 77)),
        ("NVRM: Xid (PCI:00000000:61:00.0): 31, pid='88', name=x", (GPU, 31, 88)),
    ],
)
def test_lines_of_the_driver_are_understood(
    feed: XidFeed, line: str, wanted: tuple[str, int, int]
) -> None:
    """Forms seen in public logs, old and new."""
    feed.from_kernel(line, 1.0)
    (event,) = feed.take(1.0)
    assert (event.uuid, event.code, event.pid) == wanted


def test_other_lines_are_none(feed: XidFeed) -> None:
    """The driver says much that is no XID."""
    feed.from_kernel("NVRM: GPU at PCI:0000:61:00: GPU-0b8d, serial 13", 1.0)
    assert feed.take(9.0) == ()


def test_a_storm_is_bounded(feed: XidFeed) -> None:
    """A broken card reports thousands: the newest are kept."""
    for n in range(5000):
        feed.from_kernel(LINE.format(code=13, pid=n + 1), n / 1e4)
    told = feed.take(1.0)
    assert len(told) == xids._KEPT
    assert told[-1].pid == 5000


def test_the_follower_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """journalctl may be killed, or not be ready yet."""
    monkeypatch.setattr(kernel_log, "_BACKOFF_S", 0.02)
    got: list[str] = []
    line = json.dumps({"MESSAGE": LINE.format(code=31, pid=1)})
    log = KernelLog(("echo", line), lambda text, _at: got.append(text))
    try:
        wait_until(lambda: len(got) >= 3, 10, "three followers")
    finally:
        log.close()


def test_history_is_no_news() -> None:
    """A line from before the start, as -n 1 brings it, proves the log and is not told."""
    got: list[str] = []
    heard = threading.Event()
    message = LINE.format(code=31, pid=1)
    old = json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": "1000000"})
    odd = json.dumps({"MESSAGE": [78, 86, 82, 77], "note": "NVRM: Xid"})
    new = json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": str(2**53)})
    log = KernelLog(
        ("printf", "%s\\n", old, "NVRM: Xid is no JSON", odd, new),
        lambda text, _at: got.append(text),
        heard.set,
    )
    try:
        assert heard.wait(10)
        wait_until(lambda: got, 10, "the new line")
        assert got[0] == message
        assert len(got) == 1
    finally:
        log.close()


def test_closing_ends_the_follower() -> None:
    """At once, and it is not started again."""
    heard = threading.Event()
    log = KernelLog(("sh", "-c", "echo x; exec sleep 600"), lambda _t, _a: None, heard.set)
    assert heard.wait(10)
    process = log._process
    assert process is not None
    log.close()
    assert process.wait(5) is not None
    assert not log._thread.is_alive()


def test_no_journalctl_no_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML alone then, also where one of the two programs is missing."""
    there: dict[str, str] = {}
    monkeypatch.setattr(kernel_log, "tool", there.get)
    assert kernel_log.command() == ()
    there["journalctl"] = "/usr/bin/journalctl"
    assert kernel_log.command() == ()
    there["setpriv"] = "/usr/bin/setpriv"
    assert kernel_log.command()[:4] == (
        "/usr/bin/setpriv",
        "--pdeathsig",
        "KILL",
        "/usr/bin/journalctl",
    )


def test_the_callers_path_names_no_follower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of the same names in a folder of PATH are never run: system folders alone are looked into."""
    for name in ("journalctl", "setpriv"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not [word for word in kernel_log.command() if word.startswith(str(tmp_path))]


def test_the_real_follower_dies_with_its_owner() -> None:
    """The daemon is killed: no journalctl is left behind."""
    if not kernel_log.command():
        pytest.skip("this machine has no journalctl or no setpriv")
    code = (
        "import time\n"
        "from arbiterd.sense.kernel_log import KernelLog, command\n"
        "log = KernelLog(command(), lambda t, a: None)\n"
        "while log._process is None: time.sleep(0.01)\n"
        "print(log._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        wait_until(lambda: "journalctl" in procfs.command(pid).split("--pdeathsig")[0], 10)
        owner.kill()
        wait_until(lambda: procfs.ref(pid) is None, 10, "the follower to be gone")
