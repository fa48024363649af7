"""What fixtures can learn of their test."""

from __future__ import annotations

import pytest

FAILED = pytest.StashKey[
    bool
]()  # in a test's stash once a part of it has failed (tests/conftest.py)
