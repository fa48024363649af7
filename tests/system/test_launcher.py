"""The launcher contract, held by the systemd launcher inside the box."""

from __future__ import annotations

import pytest

from tests.system.conftest import Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_the_systemd_launcher_keeps_the_contract(box: Box) -> None:
    """tests/act/test_launcher_contract.py and test_freezing.py, every test, with transient units."""
    files = ("tests/act/test_launcher_contract.py", "tests/act/test_freezing.py")
    assert box.pytest("GPU_ARBITER_LAUNCHERS=systemd", *files, name="contract") >= 28
