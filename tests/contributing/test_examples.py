"""CONTRIBUTING's three examples, each a patch: applied to a copy of the tree it passes what a commit has to pass.

A patch that no longer applies is made anew: apply it with ``git apply --reject``, mend it, ``git diff -U1``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("arbiterd", "tests", "docs", "units", "etc", "scripts", "pyproject.toml", "CHANGELOG.md")
# What an example changes beside its tests and CHANGELOG.
TOUCHED = {
    "engine": {
        "arbiterd/engines/llama_server.py",
        "arbiterd/engines/__init__.py",
        "arbiterd/model/settings.py",
    },
    "setting": {
        "arbiterd/model/settings.py",
        "arbiterd/core/traffic/doors.py",
        "arbiterd/core/limits.py",
    },
    "event": {
        "arbiterd/model/events.py",
        "arbiterd/report/catalogue.py",
        "arbiterd/core/conditions.py",
        "arbiterd/core/host_memory.py",
    },
}
CHECKS = {
    "engine": ("tests/engines/test_llama_server.py", "tests/config/test_good_files.py"),
    "setting": ("tests/core/test_doors.py",),
    "event": ("tests/core/test_host_memory.py", "tests/report/test_journal.py"),
}


def _patch(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.patch")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What of the tree the checks read."""
    for name in COPIED:
        one = ROOT / name
        if one.is_dir():
            shutil.copytree(one, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(one, tmp_path / name)
    return tmp_path


def _run(folder: Path, *argv: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        argv, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.mark.parametrize("name", TOUCHED)
def test_an_example_changes_no_other_file(name: str) -> None:
    """An engine is one file, its name and its line; a setting its definition and its use; an event its definition
    and its condition.
    """
    touched = set(re.findall(r"^\+\+\+ b/(.*)$", _patch(name).read_text(), re.MULTILINE))
    assert {one for one in touched if not one.startswith("tests/")} - {"CHANGELOG.md"} == TOUCHED[
        name
    ]
    assert "CHANGELOG.md" in touched


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TOUCHED)
def test_an_example_passes_its_tests(name: str, tree: Path) -> None:
    """After python -m tests.golden, as CONTRIBUTING has it."""
    _run(tree, "git", "apply", "-C1", "--exclude=CHANGELOG.md", str(_patch(name)))
    _run(tree, sys.executable, "-m", "tests.golden")
    _run(tree, sys.executable, "-m", "ruff", "check", "--no-cache", "arbiterd", "tests/golden")
    tests = ("tests/golden", *CHECKS[name])
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "--timeout", "300")
    _run(tree, sys.executable, "-m", "pytest", *options, *tests)


@pytest.mark.every
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TOUCHED)
def test_an_example_passes_the_type_checker(name: str, tree: Path) -> None:
    """With the import contracts."""
    _run(tree, "git", "apply", "-C1", "--exclude=CHANGELOG.md", str(_patch(name)))
    _run(tree, sys.executable, "-m", "mypy", "--no-error-summary", "arbiterd")
    _run(tree, str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
