"""The stranger of tests/support/overflow.py itself."""

from __future__ import annotations

import signal
from pathlib import Path

from arbiterd.sim.gpu import SimGpu
from tests.support import wait_until
from tests.support.overflow import Stranger


def test_signals_are_what_the_witness_would_see(gpu: SimGpu, sim_lib: Path, tmp_path: Path) -> None:
    """The test of the test: a stranger that is signalled says so."""
    notebook = Stranger(tmp_path, gpu.path, sim_lib)
    try:
        assert notebook.unharmed()
        notebook.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not notebook.unharmed(), 5)
        assert notebook.process.poll() is None
    finally:
        notebook.close()
