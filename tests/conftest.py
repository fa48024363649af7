"""Fixtures that every room may use. Scope by cost: the simulated GPU's library is built once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu, build
from tests.conformance.suite import summary

SHARED_ENV = "GPU_ARBITER_TEST_SHARED"


@pytest.fixture(scope="session")
def sim_lib() -> Path:
    """Folder with the simulated libnvidia-ml.so.1, built when its sources have changed."""
    return build(Path(tempfile.gettempdir()) / f"gpu-arbiter-sim-test-{os.getuid()}")


@pytest.fixture
def gpu(sim_lib: Path, tmp_path: Path) -> Iterator[SimGpu]:
    """One simulated RTX 4090 of this test's own."""
    one = SimGpu.create(tmp_path / "gpu", sim_lib, ("rtx4090-24g",))
    yield one
    one.close()


@pytest.fixture
def sim_env(sim_lib: Path, tmp_path: Path) -> dict[str, str]:
    """Environment in which pynvml meets the simulated GPU of the ``gpu`` fixture."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GPU_ARBITER_")}
    return {
        **env,
        STATE_ENV: str(tmp_path / "gpu"),
        LIB_ENV: str(sim_lib),
        "LD_LIBRARY_PATH": str(sim_lib),
    }


def pytest_configure(config: pytest.Config) -> None:
    """One folder for what all workers of this run share; they inherit its name."""
    if SHARED_ENV not in os.environ:
        os.environ[SHARED_ENV] = tempfile.mkdtemp(prefix="gpu-arbiter-test-")
        config.add_cleanup(_remove_shared)


def _remove_shared() -> None:
    shutil.rmtree(os.environ.pop(SHARED_ENV), ignore_errors=True)


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """A folder that all workers of this run share; guard what is made in it by a lock."""
    return Path(os.environ[SHARED_ENV])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many conformance cases each engine passes, where any were played."""
    reports = [
        one
        for name in ("passed", "failed")
        for one in terminalreporter.stats.get(name, ())
        if isinstance(one, pytest.TestReport)
    ]
    for line in summary(reports):
        terminalreporter.write_line(line)
