"""Fixtures of the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.engine import Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Engines started so far by this test process; they end with it."""
    running = Servers(tmp_path_factory.mktemp("conformance"))
    yield running
    running.stop()
