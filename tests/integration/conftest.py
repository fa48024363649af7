"""A host per test; everything it started ends with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import Host


@pytest.fixture
def host(tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """One simulated RTX 4090, nothing started yet."""
    one = Host(tmp_path, sim_lib)
    yield one
    one.close()


@pytest.fixture
def pair(tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """Two simulated GPUs."""
    one = Host(tmp_path, sim_lib, ("rtx4090-24g", "rtx4090-24g"))
    yield one
    one.close()
