"""A real systemd with gpu-arbiter installed in it, a simulated GPU and the stand-in engines.

What pip brings is fetched once for all workers, by `make install DESTDIR=`; each worker boots a box of
its own, where `make install` then finds that version complete and does the rest of its work for real.
Everything that has pids in it (the table of the simulated GPU) is made inside the box, whose pids are
its own.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arbiterd.sim.gpu import SimGpu
from tests.support import wait_until
from tests.system import outside

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = "/opt/gpu-arbiter/current/venv/bin/python"
PACKAGES = "/test-packages"  # of the checkout, for every user of the box
LISTEN = 9480
Json = dict[str, Any]

CONFIG = """\
mode = "A"

[arbiter]
listen = "127.0.0.1:9480"
poll = "100ms"

[backends.vllm]
command = ["{python}", "-m", "arbiterd.sim.engines.vllm", "serve", "Qwen/Qwen2.5-3B-Instruct"]
max_model_len = 8192
drain_timeout = "2s"
restart_delay = "200ms"
env = {{ {sim}, GPU_SIM_FAULTS = "/sim/vllm.json" }}

[backends.ollama]
command = ["{python}", "-m", "arbiterd.sim.engines.ollama", "serve"]
models = ["qwen2.5:3b"]
version = "0.33.0"
restart_delay = "200ms"
env = {{ {sim}, GPU_SIM_FAULTS = "/sim/ollama.json" }}

[modes.A]
vllm = {{ gpu = 0, memory = "55%" }}
ollama = {{ gpu = 0, memory = "20%" }}

[modes.B]
vllm = {{ gpu = 1, memory = "75%" }}
ollama = {{ gpu = 0, memory = "20%" }}
"""
DROP_IN = """\
[Service]
Environment=GPU_SIM_STATE=/sim/gpu GPU_SIM_LIB=/sim/lib LD_LIBRARY_PATH=/sim/lib
ReadWritePaths=/sim
WatchdogSec=3s
"""


class Box:
    """The box and what tests ask of it."""

    def __init__(self, name: str, tree: Path, sim: Path, *, cgroup: str = "auto") -> None:
        self.name, self.tree, self.sim, self.cgroup = name, tree, sim, cgroup
        self.script = HERE / "systemd-box"
        self.since = 0.0  # of the last fresh(): what the journal has from before is another test's

    def _call(
        self, *argv: str, timeout_s: float = 300.0, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.script), "-n", self.name, *argv],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=text,
            check=False,
        )

    def up(self) -> None:
        """Boot, install."""
        done = self._call(
            "up",
            "--bind", f"{self.tree}/opt/gpu-arbiter:/opt/gpu-arbiter",
            "--bind", f"{self.sim}:/sim",
            "--bind-ro", str(ROOT),
            "--bind-ro", f"{sysconfig.get_path('purelib')}:{PACKAGES}",
            "--cgroup", self.cgroup,
            "--max-life", "3600",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.put("/etc/systemd/system/gpu-arbiter.service.d/sim.conf", DROP_IN)
        self.sh("chmod 1777 /sim")
        self.install()

    def install(self) -> str:
        """`make install`, as root does it on a host; returns what it printed."""
        return self.sh(f"umask 077 && make -C {ROOT} --no-print-directory install", timeout_s=300)

    def down(self) -> None:
        """Power off; nothing is left."""
        self._call("down", timeout_s=60)

    def run(self, *argv: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """A command in the box."""
        return self._call("exec", "-t", str(int(timeout_s)), "--", *argv, timeout_s=timeout_s + 10)

    def sh(self, line: str, timeout_s: float = 240.0) -> str:
        """A shell line that must succeed; returns its output."""
        done = self.run("sh", "-c", line, timeout_s=timeout_s)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def put(self, path: str, text: str) -> None:
        """Write a file in the box."""
        outside.write(outside.inside(self.name, path), text)

    def inside(self, path: str) -> Path:
        """This path of the box as the test reaches it; anew after a reboot."""
        return outside.inside(self.name, path)

    def alive(self, pid: int) -> bool:
        """Whether the box has a process of this pid (of the box's own)."""
        return outside.inside(self.name, f"/proc/{pid}").exists()

    def pytest(self, environ: str, *argv: str, name: str) -> int:
        """Run a part of these tests in the box, with its temporary files in /run/NAME; returns how many
        passed. What failed there is shown from the first failure on, its end rather than its beginning.
        """
        line = f"cd {ROOT} && {sys.executable} -m pytest -q --tb=short -p no:cacheprovider -p no:randomly"
        line += f" --basetemp=/run/{name} {' '.join(argv)}"
        done = self.run("env", environ, "sh", "-c", line, timeout_s=800)
        passed = re.search(r"(\d+) passed", done.stdout)
        if done.returncode != 0 or passed is None:
            first = re.search(r"^=+ (FAILURES|ERRORS) =+$", done.stdout, re.MULTILINE)
            text = done.stdout[first.start() if first else 0 :][-6000:]
            pytest.fail(f"{name} in the box: {done.returncode}\n{text}{done.stderr[-1000:]}", False)
        return int(passed[1])

    # -- the arbiter ---------------------------------------------------------------------------
    def config(self, text: str | None = None) -> str:
        """Write the configuration; returns it."""
        sim = 'GPU_SIM_STATE = "/sim/gpu", GPU_SIM_LIB = "/sim/lib"'
        made = text if text is not None else CONFIG.format(python=PYTHON, sim=sim)
        self.put("/etc/gpu-arbiter.toml", made)
        return made

    def fresh(self) -> None:
        """Stop everything and start over: a new simulated pair of GPUs, no state, no faults."""
        self.sh(
            "systemctl stop gpu-arbiter.service gpu-arbiter.slice; systemctl reset-failed;"
            " rm -rf /sim/*.json /sim/gpu /var/lib/gpu-arbiter/* /run/gpu-arbiter/*"
        )
        table = self.sim / "gpu"  # without allocations it holds no pids, the box's or others'
        SimGpu.create(table, self.sim / "lib", ("rtx4090-24g", "rtx4090-24g")).close()
        table.chmod(0o666)
        self.config()
        self.since = time.time()

    def status(self) -> Json:
        """/v1/status over the admin socket."""
        try:
            return outside.get(self.name, "/v1/status")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return {"backends": [], "error": repr(error)}

    def backends(self) -> dict[str, Json]:
        """By name."""
        return {one["name"]: one for one in self.status()["backends"]}

    def start(self) -> None:
        """systemctl start, and wait for both engines."""
        done = self.run("systemctl", "start", "gpu-arbiter")
        assert done.returncode == 0, done.stderr + self.journal_text()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = 40.0) -> None:
        """Both engines accept."""

        def accept() -> bool:
            found = self.backends()
            return len(found) == 2 and all(one["accepting"] for one in found.values())

        try:
            wait_until(accept, timeout_s, "both engines to accept")
        except AssertionError as error:
            msg = f"{error}\n{self.status()}\n{self.journal_text()[-4000:]}"
            raise AssertionError(msg) from None

    def main_pid(self, name: str) -> int:
        """MainPID of a backend's unit."""
        return int(self.show(f"gpu-arbiter-backend-{name}", "MainPID"))

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.sh(f"systemctl show -P {name} {unit}")

    def pids(self) -> dict[str, list[int]]:
        """Processes by backend."""
        return {name: one["pids"] for name, one in self.backends().items()}

    def warm_pids(self) -> dict[str, list[int]]:
        """Processes by backend once Ollama's warm model is loaded: a load ends with the client that asked for
        it, and that is the daemon which a test is about to end (test_gateway, 1 of ~20).
        """
        ps = "curl -sS -m 20 http://127.0.0.1:11434/api/ps"
        wait_until(lambda: '"qwen2.5:3b"' in self.sh(ps), 30, "the warm model")
        return self.pids()

    def kept(self, before: dict[str, list[int]]) -> None:
        """Wait until every process of ``before`` is listed: an Ollama may have got a runner meanwhile, and
        a daemon that has adopted lists one only when it has seen it again.
        """

        def listed() -> bool:
            now = self.pids()
            return all(set(pids) <= set(now.get(name, ())) for name, pids in before.items())

        wait_until(listed, 30, f"{before}, not {self.pids()}")

    def journal(self, *match: str) -> list[Json]:
        """Journal entries with all their fields."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "-o", "json", "--no-pager", *match).stdout
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def journal_text(self) -> str:
        """The daemon's journal since fresh()."""
        since = f"--since=@{self.since:.6f}"
        return self.run("journalctl", "--no-pager", "-u", "gpu-arbiter", since).stdout

    def event(self, name: str, since: float = 0.0, *, said: str = "", **fields: str) -> Json:
        """Wait for an event of the daemon since then, at the earliest since fresh(), whose message has
        ``said`` in it; returns the first such journal entry.
        """
        match = [f"ARBITER_EVENT={name}", *(f"ARBITER_{k.upper()}={v}" for k, v in fields.items())]
        want = ("-t", "gpu-arbiter", *match)
        found = outside.entry(self.name, max(since, self.since), want, said)
        assert found is not None, f"event {match} {said} not told\n{self.journal_text()[-4000:]}"
        return found


def _cannot_boot() -> str:
    if os.geteuid() != 0:
        return "system tests need root: they boot a real systemd in namespaces"
    probe = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "this machine does not let root make namespaces"
    return ""


@pytest.fixture(scope="session")
def packed(run_folder: Path) -> Path:
    """The tree of `make install DESTDIR=`, made by the first worker that wants it."""
    why = _cannot_boot()
    if why:
        pytest.skip(why)
    tree = run_folder / "dest"
    with (run_folder / "dest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            making = run_folder / "dest.new"
            shutil.rmtree(making, ignore_errors=True)
            done = subprocess.run(
                ["make", "-C", str(ROOT), "--no-print-directory", "install"],
                env={**os.environ, "DESTDIR": str(making), "PREFIX": "/opt/gpu-arbiter"},
                capture_output=True,
                text=True,
                umask=0o077,  # of root on a hardened host: engines and gateway run as other users
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            making.rename(tree)
    return tree


@pytest.fixture(scope="session")
def installed(packed: Path, sim_lib: Path) -> Iterator[Box]:
    """This worker's box, booted once, with gpu-arbiter installed in it."""
    home = Path(tempfile.mkdtemp(prefix="gpu-arbiter-system-"))
    box = Box(f"arbiter-{os.getpid()}", home / "dest", home / "sim")
    try:
        subprocess.run(["cp", "-al", str(packed), str(box.tree)], check=True)
        shutil.copytree(sim_lib, box.sim / "lib")
        box.up()
        yield box
    finally:
        box.down()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def box(installed: Box) -> Iterator[Box]:
    """The box with nothing of ours running and a fresh simulated host."""
    installed.fresh()
    yield installed
    installed.run("systemctl", "stop", "gpu-arbiter.service", "gpu-arbiter.slice")


@pytest.fixture
def now() -> float:
    """Wall time, for journal entries of this test."""
    return time.time() - 0.5
