"""A runtime_dir that takes nothing, or is gone: what is decided is told to HAProxy all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

import pytest

from arbiterd.gateway import runtime
from arbiterd.linux import procfs
from tests.gateway.conftest import make, write
from tests.support import PATIENCE_S, wait_until
from tests.support.host import Host
from tests.support.lending import Lender

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
URL = "/v1/models/resnet50:predict"


@pytest.fixture(scope="module")
def small_lender(sim_lib: Path) -> Iterator[Lender]:
    """A host whose runtime_dir is on a file system of 4 MiB."""
    mounted: list[Path] = []

    def written() -> Host:
        host = make(sim_lib)
        folder = host.home / "run"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", folder], check=True)
        mounted.append(folder)
        write(host)
        return host

    one = Lender(written)
    try:
        yield one
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", folder], check=False)
        one.close()


@pytest.fixture
def small(small_lender: Lender, request: pytest.FixtureRequest) -> Iterator[Host]:
    """That host, up."""
    with small_lender.lend(request.node) as one:
        yield one
        (one.home / "run/filler").unlink(missing_ok=True)


def fill(folder: Path) -> Path:
    """A file that takes what is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        while _takes(file):
            pass
    return path


def _takes(file: RawIOBase) -> bool:
    try:
        file.write(b"x" * 4096)
    except OSError:
        return False
    return True


def predict(host: Host) -> int:
    """Status of a request at TensorFlow's door."""
    body = {"instances": [[1.0]]}
    return host.session.post(
        host.door("tensorflow", URL), json=body, timeout=PATIENCE_S
    ).status_code


def worker(host: Host) -> int:
    """Pid of HAProxy's worker: another one after each reload."""
    files = host.home / "run/gateway"
    return runtime.look(files / "runtime.sock", files / "live.map").pid


def says(host: Host, value: str) -> bool:
    """Whether the map on disk has this state for TensorFlow."""
    return f"st:tensorflow {value}\n" in (host.home / "run/gateway/live.map").read_text()


def unwritable(host: Host) -> list[object]:
    """Open incidents about it."""
    return [i for i in host.status()["incidents_open"] if i["event"] == "state_unwritable"]


def test_a_drain_holds_on_a_full_disk_and_nothing_reloads_until_its_files_caught_up(
    small: Host,
) -> None:
    """A HAProxy that reloads reads the files: a stale map would undo the drain."""
    before = worker(small)
    filler = fill(small.home / "run")
    assert small.ctl("drain", "tensorflow").returncode == 0
    small.wait(lambda: predict(small) == 503, "the door to refuse")
    assert says(small, "up")
    small.wait(lambda: len(unwritable(small)) == 1, "the incident")
    assert "No space left on device" in str(unwritable(small))

    text = small.config.read_text()
    small.config.write_text(text.replace("max_in_flight = 4", "max_in_flight = 5"))
    small.config.write_text(
        small.config.read_text().replace("[gateway]\n", '[gateway]\nhosts = ["gpu1"]\n')
    )
    assert small.ctl("reload").returncode == 0
    seen = small.status()["loop"]["tick"]
    small.wait(lambda: small.status()["loop"]["tick"] > seen + 20, "twenty ticks")
    assert worker(small) == before
    assert predict(small) == 503

    filler.unlink()
    small.wait(lambda: says(small, "shed"), "the map on disk")
    small.wait(lambda: worker(small) != before, "the reload that was due")
    assert predict(small) == 503
    small.wait(lambda: not unwritable(small), "the incident to end")
    assert len(small.events("state_unwritable")) == 1
    assert small.ctl("resume", "tensorflow").returncode == 0
    small.wait(lambda: predict(small) == 200, "the door to open")


def test_a_daemon_starts_and_drains_on_a_full_and_a_read_only_disk(small: Host) -> None:
    """Killed on a full disk it comes back, engines keep their pids; read-only is no other than full."""
    pids = small.mains()
    fill(small.home / "run")
    small.kill()
    small.start()
    small.wait_ready()
    assert small.mains() == pids
    folder = small.home / "run"
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        assert small.ctl("drain", "tensorflow").returncode == 0
        small.wait(lambda: predict(small) == 503, "the door to refuse")
        assert len(unwritable(small)) == 1
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    (small.home / "run/filler").unlink()
    small.wait(lambda: says(small, "shed"), "the map on disk")


def test_a_full_state_dir_stops_nothing(host: Host) -> None:
    """Incidents and learned caps are kept in memory until they can be written."""
    folder = host.home / "state"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", folder], check=True)
    try:
        filler = fill(folder)
        os.kill(host.mains()["vllm"], 9)
        host.wait_event("exit", "vllm")
        host.wait(lambda: len(unwritable(host)) == 1, "the incident")
        host.wait(lambda: len(host.events("ready", "vllm")) == 1, "vllm to be back")
        filler.unlink()
        host.wait(lambda: not unwritable(host), "the incident to end")
        assert "vllm" in (folder / "incidents.json").read_text()
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def test_without_its_runtime_dir_the_daemon_ends_and_its_next_start_adopts(host: Host) -> None:
    """The folder, or what is in it: told; engines keep their pids; their doors open again, and a stop ends
    all of them.
    """
    pids = host.mains()
    restarts = {b["name"]: b["restarts"] for b in host.status()["backends"]}
    run = host.home / "run"
    for folder_too in (True, False):
        begun = host.mark()
        shutil.rmtree(run, ignore_errors=True)  # the daemon may write one more file meanwhile
        shutil.rmtree(run, ignore_errors=True)
        if not folder_too:
            run.mkdir(exist_ok=True)
        assert host.process is not None
        assert host.process.wait(60) == 1
        told = [one["MESSAGE"] for one in host.events(since=begun)]
        assert any("was removed: the daemon ends, engines run on" in one for one in told)
        assert all(procfs.ref(pid) for pid in pids.values())
        host.start()
        host.wait_ready()
        assert host.mains() == pids
        now = {b["name"]: b["restarts"] for b in host.status()["backends"]}
        assert all(now[name] <= restarts[name] for name in now), (
            "the count may be lost with the folder"
        )
        host.wait(lambda: predict(host) == 200, "TensorFlow's door")
    assert host.stop() == 0
    wait_until(lambda: not host.tagged(), 60, "no engine left")
    wait_until(lambda: not host.services(), 60, "no HAProxy, no gate left")
