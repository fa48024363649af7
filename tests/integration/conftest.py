"""A host per test, or one per module; everything it started ends with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import SHARED, Host
from tests.support.lending import Lender


@pytest.fixture
def host(tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """One simulated RTX 4090, nothing started yet."""
    one = Host(tmp_path, sim_lib)
    yield one
    one.close()


@pytest.fixture(scope="module")
def lender(sim_lib: Path) -> Iterator[Lender]:
    """One host for a module: all three on one card, no doors."""

    def written() -> Host:
        host = Host(Path(tempfile.mkdtemp(prefix="gpua-up-", dir="/tmp")), sim_lib)
        host.write(SHARED)
        return host

    one = Lender(written)
    yield one
    one.close()


@pytest.fixture
def up(lender: Lender, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The module's host, all ready; whatever a test does to it is put right afterwards."""
    with lender.lend(request.node) as one:
        yield one


@pytest.fixture
def pair(tmp_path: Path, sim_lib: Path) -> Iterator[Host]:
    """Two simulated GPUs, nothing started yet."""
    one = Host(tmp_path, sim_lib, ("rtx4090-24g", "rtx4090-24g"))
    yield one
    one.close()
