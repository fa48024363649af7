"""A systemd box for faults: booted here, played from within (``inside.py``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.row import Result
from tests.system.conftest import CONFIG, PACKAGES, PYTHON, ROOT, Box

LIMIT_S = 3000
TREE_ENV = "FAULTS_TREE"


def in_box(lib: Path, mode: str, words: Sequence[str]) -> Iterator[Result]:
    """Boot, install, play these ids (or ``kills N SEED``); results as they come. ``mode``: cgroups."""
    home = Path(tempfile.mkdtemp(prefix="gpua-b-"))
    box = Box(f"faults-{os.getpid()}", home / "dest", home / "sim", cgroup=mode)
    try:
        subprocess.run(["cp", "-al", os.environ[TREE_ENV], str(box.tree)], check=True)
        shutil.copytree(lib, box.sim / "lib")
        box.up()
        sim = 'GPU_SIM_STATE = "/sim/gpu", GPU_SIM_LIB = "/sim/lib"'
        text = CONFIG.format(python=PYTHON, sim=sim).replace('restart_delay = "200ms"', _QUICK)
        box.put("/root/faults.toml", text)
        yield from _play(box, words)
    finally:
        box.down()
        shutil.rmtree(home, ignore_errors=True)


_QUICK = 'restart_delay = "200ms"\nrestart_delay_max = "1s"\nstuck_after = "5s"'


def install(tree: Path) -> None:
    """`make install DESTDIR=`: what pip brings is fetched once for all boxes."""
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "install"],
        env={**os.environ, "DESTDIR": str(tree), "PREFIX": "/opt/gpu-arbiter"},
        capture_output=True, text=True, umask=0o077, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def _play(box: Box, words: Sequence[str]) -> Iterator[Result]:
    slack = os.environ.get("FAULTS_SLACK", "1")
    line = [str(box.script), "-n", box.name, "exec", "-t", str(LIMIT_S), "-C", str(ROOT),
            "-e", f"PYTHONPATH={ROOT}:{PACKAGES}", "-e", "PYTHONDONTWRITEBYTECODE=1", "-e", f"FAULTS_SLACK={slack}",
            "--", PYTHON, "-m", "tests.faults.inside", "/root/faults.toml", *words]  # fmt: skip
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as inside:
        assert inside.stdout is not None
        try:
            for row in inside.stdout:
                if row.startswith("{"):
                    yield Result(**json.loads(row))
                else:
                    print(row, end="", flush=True)
        finally:
            inside.terminate()  # cut short: what it plays ends with its box
