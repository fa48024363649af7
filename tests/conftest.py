"""Fixtures that every room may use. Scope by cost: the simulated GPU's library is built once."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from arbiterd.sim.gpu import LIB_ENV, STATE_ENV, SimGpu, build
from tests.conformance.suite import summary
from tests.support.outcome import FAILED

# Rooms whose tests start no process: `make test-fast`.
FAST = ("config", "core", "engines", "fit", "report", "store", "trace", "world")
# Within them: whole worlds, which take a minute of their own; promtool and other users' eyes.
NOT_FAST = (
    "core/test_invariants.py",
    "core/test_properties.py",
    "core/test_scenarios.py",
    "report/test_alerts.py",
    "report/test_dashboard.py",
    "fit/test_finding.py",
    "store/test_atomic.py",
)
SHARED_ENV = "GPU_ARBITER_TEST_SHARED"
# Read when gRPC's library starts: else it would go on in each forked child (tests/support/forks.py).
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# `make test &` in a script starts with SIGINT ignored, nohup with SIGHUP, and what is started here would
# inherit that. A handler is not inherited.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)

# How long an example takes tells how busy the machine is, nothing of the code.
hypothesis_settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("any machine")


@pytest.fixture(scope="session")
def sim_lib() -> Path:
    """Folder with the simulated libnvidia-ml.so.1, built when its sources have changed."""
    return build()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own may not be entered."""
    with tempfile.TemporaryDirectory(prefix="gpu-arbiter-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    text = "only what starts no process: a test that starts one fails"
    parser.addoption("--fast", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """--fast: the rooms of pure code."""
    if not config.getoption("--fast"):
        return
    root = config.rootpath / "tests"
    names = [(item, item.path.relative_to(root)) for item in items]
    kept = [i for i, name in names if name.parts[0] in FAST and str(name) not in NOT_FAST]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fixtures learn that their test has failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """--fast is what it says: no process is started within a test."""
    global _fast  # noqa: PLW0603 - an audit hook cannot be taken away again
    if item.config.getoption("--fast") and _fast is None:
        sys.addaudithook(_no_process)
    _fast = bool(item.config.getoption("--fast"))
    try:
        yield
    finally:
        _fast = False


_fast: bool | None = None


def _no_process(event: str, _: tuple[object, ...]) -> None:
    if _fast and event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        msg = "a test of the fast tier starts a process; its room is not in tests/conftest.py FAST then"
        raise RuntimeError(msg)


def pytest_configure(config: pytest.Config) -> None:
    """One folder for what all workers of this run share; they inherit its name."""
    if SHARED_ENV not in os.environ:
        # Else each process of a test compiles the package where PYTHONDONTWRITEBYTECODE is set.
        compileall.compile_dir(config.rootpath / "arbiterd", quiet=2)
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
