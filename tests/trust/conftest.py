"""Folders that other users can reach, and other users."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may enter; pytest's own may not be entered."""
    with tempfile.TemporaryDirectory(prefix="gpu-arbiter-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
