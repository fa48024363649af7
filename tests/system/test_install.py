"""make install and make uninstall, without touching this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import ROOT, Box

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def _files(tree: Path) -> set[str]:
    return {str(p.relative_to(tree)) for p in tree.rglob("*") if not p.is_dir() or p.is_symlink()}


def test_install_puts_everything_in_place_and_uninstall_takes_it_away(
    installed: Box, tmp_path: Path
) -> None:
    """Config and state stay; PURGE=1 takes them as well."""
    copy = tmp_path / "dest"
    subprocess.run(["cp", "-al", str(installed.tree), str(copy)], check=True)
    there = _files(copy)
    for wanted in (
        "opt/gpu-arbiter/bin/arbiterd",
        "opt/gpu-arbiter/bin/arbiterctl",
        "usr/local/bin/arbiterctl",
        "usr/local/lib/systemd/system/gpu-arbiter.service",
        "usr/local/lib/systemd/system/gpu-arbiter.slice",
        "usr/local/lib/sysusers.d/gpu-arbiter.conf",
        "usr/local/lib/tmpfiles.d/gpu-arbiter.conf",
        "usr/lib/systemd/catalog/gpu-arbiter.catalog",
        "etc/gpu-arbiter.toml",
    ):
        assert wanted in there, wanted
    environ = {**os.environ, "DESTDIR": str(copy), "PREFIX": "/opt/gpu-arbiter", "PURGE": ""}
    script = str(ROOT / "scripts" / "uninstall")
    subprocess.run([script], env=environ, check=True, capture_output=True)
    assert _files(copy) == {"etc/gpu-arbiter.toml"}
    subprocess.run([script], env={**environ, "PURGE": "1"}, check=True, capture_output=True)
    assert _files(copy) == set()
