"""`make run`: the demo starts, says what to try, and leaves nothing behind; a second arbiter is named."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from arbiterd.lock import Lock
from arbiterd.sim import run
from tests.config.test_good_files import FIFTEEN
from tests.support import wait_until


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: the demo's admin.sock must fit into 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="demo-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_the_demo_runs_and_ctrl_c_leaves_nothing(tmp_path: Path, short: Path) -> None:
    """Ready line, page, API; SIGINT: exit 0, folder and processes gone."""
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "arbiterd.sim.run"],
            env={**os.environ, "TMPDIR": str(short)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "all three engines are ready" in log.read_text(), 60, "the demo")
        text = log.read_text()
        assert "the demo on a simulated GPU, because" in text
        url = re.findall(r"page +(http://127\.0\.0\.1:\d+)/", text)[0]
        with requests.Session() as session:
            session.trust_env = False
            assert "gpu-arbiter" in session.get(f"{url}/", timeout=5).text
            found = session.get(f"{url}/v1/status", timeout=5).json()
        pids = [pid for one in found["backends"] for pid in one["pids"]]
        assert len(found["gpus"]) == 2
        assert pids
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert not [
            p
            for p in pids
            if Path(f"/proc/{p}/cmdline").exists()
            and b"arbiterd.sim" in Path(f"/proc/{p}/cmdline").read_bytes()
        ]
        assert not list(short.glob("gpu-arbiter-demo-*"))
    finally:
        if process.poll() is None:  # SIGTERM: killed, it would leave its daemon behind
            process.terminate()
            process.wait(40)


def test_for_real_needs_root_a_gpu_and_a_file(tmp_path: Path) -> None:
    """Else it says which is missing, and shows the demo."""
    assert run.for_real({}, tmp_path / "none.toml") in (
        "you are not root",
        "this machine has no NVIDIA GPU",
        f"there is no {tmp_path}/none.toml",
    )


def test_a_running_arbiter_is_named_and_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1: who holds the lock."""
    config = tmp_path / "f.toml"
    config.write_text(f'{FIFTEEN}\n[arbiter]\nruntime_dir = "{tmp_path}/run"\n')
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("GPU_ARBITER_CONFIG", str(config))
    monkeypatch.setattr(run, "for_real", lambda *_: "")
    lock = Lock(tmp_path / "run")
    try:
        assert run.main() == 1
        assert f"an arbiter runs already: pid {os.getpid()}" in capsys.readouterr().err
    finally:
        lock.close()
