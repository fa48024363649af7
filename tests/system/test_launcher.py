"""The launcher contract, held by the systemd launcher inside the box."""

from __future__ import annotations

import re
import sys

import pytest

from tests.system.conftest import ROOT, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_the_systemd_launcher_keeps_the_contract(box: Box) -> None:
    """tests/act/test_launcher_contract.py and test_freezing.py, every test, with transient units."""
    done = box.run(
        "env",
        "GPU_ARBITER_LAUNCHERS=systemd",
        "sh",
        "-c",
        f"cd {ROOT} && {sys.executable} -m pytest -q -p no:cacheprovider -p no:randomly "
        "--basetemp=/run/contract tests/act/test_launcher_contract.py tests/act/test_freezing.py",
        timeout_s=500,
    )
    found = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert found is not None
    assert int(found[1]) >= 28
