"""Nothing freezes the loop: reads are bounded in bytes and time, log lines never wait, and what the
daemon itself missed is held against nobody.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.daemon.stalls import Stalls
from arbiterd.errors import ConfigRefused
from arbiterd.files import bounded
from arbiterd.model.devices import Device, DeviceObservation, GpuProcess, GpuState, Memory
from arbiterd.model.events import EventName, Severity
from arbiterd.model.reading import Known, Unknown
from arbiterd.report import journal
from arbiterd.report.aside import MOST_LINES, Aside
from arbiterd.report.journal import Journal
from arbiterd.secrets.keyring import Keyring
from arbiterd.sense.nvml import NvmlSource
from tests.support import wait_until


def test_a_pipe_a_device_and_a_large_file_are_given_up(tmp_path: Path) -> None:
    """In bytes and in time; a pipe that somebody writes to is read like a file (check <(...))."""
    before = set(threading.enumerate())  # of other tests in this process
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(TimeoutError, match="a pipe that nobody writes to"):
        bounded.read(fifo, 1000, 0.05)
    assert not set(threading.enumerate()) - before, "no thread is left"
    with pytest.raises(OSError, match="larger than 1000000 bytes") as large:
        bounded.read("/dev/zero", 1_000_000)
    assert large.value.errno == errno.EFBIG
    for path in (fifo, "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            bounded.regular(path, 1000)

    def write() -> None:
        fifo.write_text("hello")

    thread = threading.Thread(target=write)
    thread.start()
    assert bounded.read(fifo, 1000, 20) == b"hello"
    thread.join()


def test_a_disk_that_hangs_costs_one_thread_and_the_next_look_nothing() -> None:
    """While one call is stuck at a path, the next fails at once; others go on; it ends, all is well."""
    go = threading.Event()
    calls: list[threading.Thread] = []

    def hang() -> str:
        calls.append(threading.current_thread())
        go.wait(60)
        return "late"

    with pytest.raises(TimeoutError):
        bounded.aside("/disk", hang, 0.05)
    for _ in range(50):
        with pytest.raises(TimeoutError):
            bounded.aside("/disk", hang, 60)
    assert len(calls) == 1
    assert bounded.aside("/other", lambda: 5) == 5
    go.set()
    wait_until(lambda: not calls[0].is_alive(), what="its end")
    assert bounded.aside("/disk", lambda: 6) == 6


@pytest.mark.parametrize("what", ["fifo", "zero", "folder"])
def test_a_configuration_that_is_no_file_is_refused_with_a_sentence(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the config path itself, and never a traceback."""
    monkeypatch.setattr(bounded.read, "__defaults__", (0.05,))
    path = {"fifo": tmp_path / "f", "zero": Path("/dev/zero"), "folder": tmp_path}[what]
    if what == "fifo":
        os.mkfifo(path)
    with pytest.raises(ConfigRefused) as refused:
        load(path, {})
    (problem,) = refused.value.problems
    assert "cannot be read" in str(problem)


@pytest.mark.parametrize(
    "key", ["env_file", "key_file", "certificate", "canary", "batching", "token"]
)
def test_a_file_that_the_configuration_names_may_be_anything(tmp_path: Path, key: str) -> None:
    """A pipe in the place of each of them: a problem with its line, or an empty answer, at once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    where = {
        "env_file": f'vllm = {{ command = ["vllm", "serve", "m"], env_file = "{fifo}" }}\n',
        "canary": f'tensorflow = {{ command = ["x"], models = {{ a = "/a" }}, canary = "{fifo}" }}\n',
        "batching": f'tensorflow = {{ command = ["x"], models = {{ a = "/a" }}, batching = "{fifo}" }}\n',
    }
    gateway = f'[gateway]\n{key} = "{fifo}"\n' if key in ("key_file", "certificate") else ""
    arbiter = f'[arbiter]\ntoken_file = "{fifo}"\n' if key == "token" else ""
    backend = where.get(key, 'vllm = { command = ["vllm", "serve", "m"] }\n')
    name = backend.split(" ")[0]
    path = tmp_path / "c.toml"
    path.write_text(
        f'mode = "A"\n{arbiter}{gateway}[backends]\n{backend}[modes.A]\n{name} = {{ gpu = 0, memory = "50%" }}\n'
    )
    try:
        loaded = load(path, {})
    except ConfigRefused as refused:
        found = refused.problems
    else:
        found = loaded.warnings
        Keyring().engine(loaded.settings.active.backends[name])
    assert [one for one in found if str(fifo) in str(one)], found
    assert Keyring().doors(str(fifo)) == ()


# -- log lines ---------------------------------------------------------------------------------------
def test_a_writer_that_hangs_costs_lines_and_they_are_counted() -> None:
    """Who logs never waits; the count is written as soon as writing works."""
    go, written = threading.Event(), []

    def write(entry: str) -> None:
        go.wait(60)
        written.append(entry)

    aside: Aside[str] = Aside(write, lambda count: f"{count} lost")
    for number in range(MOST_LINES + 500):
        aside.put(str(number), 10)
    go.set()
    assert aside.close(60)
    lost = [one for one in written if "lost" in one]
    assert sum(int(one.split()[0]) for one in lost) + len(written) - len(lost) == MOST_LINES + 500
    assert int(lost[0].split()[0]) >= 499


def test_a_pipe_that_nobody_reads_stops_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON lines on a full pipe; read again, the rest comes and the loss is told."""
    ours, theirs = os.pipe()

    class Stderr:
        def fileno(self) -> int:
            return theirs

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stderr", Stderr())
    log = Journal("json")
    for number in range(MOST_LINES + 2000):
        log.say(Severity.INFO, f"line {number} " + "x" * 200)
    parts: list[bytes] = []

    def read() -> None:
        while part := os.read(ours, 1 << 16):
            parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    assert log.flush(60)
    log.close()
    os.close(theirs)
    reader.join()
    os.close(ours)
    said = [json.loads(one)["MESSAGE"] for one in b"".join(parts).split(b"\n")[:-1]]
    lost = [int(one.split()[0]) for one in said if "log lines were lost" in one]
    assert said[0].startswith("line 0 ")
    assert lost
    assert len(said) - len(lost) + sum(lost) == MOST_LINES + 2000


def test_an_exception_of_a_thread_becomes_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be written to stderr otherwise, and wait there."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    import logging

    kept = logging.getLogger().handlers[:]
    log = Journal("json")
    journal.catch_all(log)
    try:
        thread = threading.Thread(target=lambda: 1 / 0, name="divider")
        thread.start()
        thread.join()
        logging.getLogger("library").error("it broke")
    finally:
        logging.getLogger().handlers[:] = kept
    log.flush()
    lines = [json.loads(one) for one in capsys.readouterr().err.splitlines()]
    assert lines[0]["ARBITER_EVENT"] == "bug"
    assert "divider" in lines[0]["MESSAGE"]
    assert "ZeroDivisionError" in lines[0]["MESSAGE"]
    assert lines[1]["MESSAGE"] == "it broke"


# -- stalls ------------------------------------------------------------------------------------------
def test_a_gap_between_ticks_is_the_loops_own() -> None:
    """Told once in 30 s, with what it comes to."""
    stalls = Stalls()
    now = 100.0
    assert stalls.look(now, 0.25) == 0
    for step in (0.25, 0.3, 1.2, 0.25):
        now += step
        assert stalls.look(now, 0.25) == 0
        assert stalls.said(now) == ()
    now += 12.25
    assert stalls.look(now, 0.25) == pytest.approx(12.0)
    (event,) = stalls.said(now)
    assert (event.name, event.severity) == (EventName.LOOP_STALLED, Severity.WARNING)
    assert "12.0 s" in event.message
    for _ in range(5):
        now += 2.25
        stalls.look(now, 0.25)
        assert stalls.said(now) == ()
    now += 30.25
    stalls.look(now, 0.25)
    assert "6 gaps" in stalls.said(now)[0].message
    assert stalls.count == 7
    assert stalls.seconds == pytest.approx(52.0)


def test_lateness_is_summed_and_missed_ticks_are_counted() -> None:
    """Also what is far too short for a stall; a tick out of turn makes up for nothing."""
    stalls = Stalls()
    now = 100.0
    for step in (0.25, 0.26, 0.1, 0.25, 0.5, 0.49, 3.25):
        now += step
        stalls.look(now, 0.25)
    assert stalls.late_s == pytest.approx(0.01 + 0.25 + 0.24 + 3.0)
    assert stalls.missed == 2
    assert stalls.count == 1


def test_a_daemon_that_was_stopped_calls_no_driver_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own gap first: the card is fine, its numbers are unknown until they are read again; a driver
    that hangs is still called hung.
    """
    source = NvmlSource()
    device = Device("GPU-1", 0, "card", "00000000:01:00.0", 24 << 30, 0)
    memory = Known(Memory(24 << 30, 0, 1 << 30, 23 << 30), 100.0)
    lists: Known[tuple[GpuProcess, ...]] = Known((), 100.0)
    source._picture.devices["GPU-1"] = DeviceObservation(device, GpuState.OK, memory, lists)
    monkeypatch.setattr(source._picture, "nvml_index", lambda _uuid: 0)
    source._sample_at = 100.0

    def only(source: NvmlSource, now: float) -> DeviceObservation:
        return source.latest(now).devices["GPU-1"]

    assert isinstance(only(source, 101.0).memory, Known)
    assert only(source, 112.0).state is GpuState.HUNG
    source.excuse(112.0)
    seen = only(source, 112.0)
    assert seen.state is GpuState.OK
    assert isinstance(seen.memory, Unknown), "nothing is decided on numbers of before"
    assert source.latest(112.0).nvml == ""
    assert only(source, 116.0).state is GpuState.HUNG, "awake for 4 s, and still no answer"
