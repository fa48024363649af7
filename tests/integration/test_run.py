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
from typing import Any

import pytest
import requests

from arbiterd.daemon.lock import Lock
from arbiterd.sim import run
from tests.config.test_good_files import FIFTEEN
from tests.support import PATIENCE_S, wait_until


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: the demo's admin.sock must fit into 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="demo-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def status(url: str) -> Any:
    """/v1/status of the demo."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{url}/v1/status", timeout=PATIENCE_S).json()


def well(url: str) -> bool:
    """Every backend takes work, and none holds memory that is not its own."""
    found = status(url)
    ledgers = [row for gpu in found["gpus"] for row in gpu["ledger"] if row["holder"] == "foreign"]
    return all(one["accepting"] for one in found["backends"]) and not any(
        r.get("pids") for r in ledgers
    )


def broken(url: str, fault: str, before: Any) -> bool:
    """Whether the fault shows."""
    found = status(url)
    starts = {one["name"]: one["restarts"] for one in found["backends"]}
    old = {one["name"]: one["restarts"] for one in before["backends"]}
    if " hold " in fault:
        rows = [row for gpu in found["gpus"] for row in gpu["ledger"] if row["holder"] == "foreign"]
        return any(row.get("pids") for row in rows)
    if " lose " in fault:
        return any(gpu["state"] == "lost" for gpu in found["gpus"])
    if " mode " in fault:
        return found["mode"] == "B" and not found["switch"]
    name = "tensorflow" if "leak" in fault else "vllm"
    return bool(starts[name] > old[name] or not found["backends"])


def listed(text: str) -> list[tuple[str, str]]:
    """(fault, undo) of each line below 'break it'; what is only looked at is left out."""
    lines = (
        text.split("break it, and undo it:")[1]
        .split("Ctrl-C stops everything", maxsplit=1)[0]
        .splitlines()
    )
    out: list[tuple[str, str]] = []
    for line in (one.strip() for one in lines):
        if line.startswith("undo:"):
            out.append((out.pop()[0], line.removeprefix("undo:").strip()))
        elif line and not line.startswith(("curl", "-d")):
            out.append((line, ""))
    return out


def breaks(url: str, text: str) -> None:
    """Every fault that the demo lists does something, and its undo undoes it, as they are printed."""
    wait_until(lambda: status(url)["backends"][0]["restarts"] >= 1, 180, "the demo's own leak")
    found = listed(text)
    assert len(found) == 6
    for fault, undo in found:
        wait_until(lambda: well(url), 240, f"all to be well before: {fault}")
        before = status(url)
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {fault}" if " hold " in fault else fault]
        )
        wait_until(lambda: broken(url, fault, before), 240, f"a sign of: {fault}")  # noqa: B023
        if undo.startswith("Ctrl-C"):
            process.send_signal(signal.SIGINT)
        elif not undo.startswith("none"):
            subprocess.run(["bash", "-c", undo], check=True, timeout=240)
        process.wait(240)
    wait_until(lambda: well(url), 240, "all to be well in the end")


@pytest.mark.timeout(1200)
def test_the_demo_runs_and_ctrl_c_leaves_nothing(tmp_path: Path, short: Path) -> None:
    """Ready line, page, API; each fault of its list with its undo; SIGINT: exit 0, all of it gone."""
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
        wait_until(lambda: "all three engines are ready" in log.read_text(), 120, "the demo")
        text = log.read_text()
        assert "the demo on a simulated GPU, because" in text
        url = re.findall(r"page +(http://127\.0\.0\.1:\d+)/", text)[0]
        with requests.Session() as session:
            session.trust_env = False
            assert "gpu-arbiter" in session.get(f"{url}/", timeout=PATIENCE_S).text
            found = session.get(f"{url}/v1/status", timeout=PATIENCE_S).json()
        assert len(found["gpus"]) == 2
        breaks(url, text)
        pids = [pid for one in status(url)["backends"] for pid in one["pids"]]
        assert pids
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
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
