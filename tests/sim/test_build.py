"""Where the simulated NVML is built: in a folder that nobody else can write, or not at all."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from arbiterd.errors import ArbiterError
from arbiterd.sim import gpu
from arbiterd.sim.gpu import SONAME, SimGpu, build, cache_folder

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def test_it_is_built_in_a_private_folder_of_this_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made 0700; where there is no cache, in a new folder under a name that nobody can foretell."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache_folder()
    assert folder == tmp_path / "cache" / "gpu-arbiter"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for bad in ("/proc/nowhere", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", bad)
        first, second = cache_folder(), cache_folder()
        assert first != second
        assert all(stat.S_IMODE(one.stat().st_mode) == 0o700 for one in (first, second))
    folder.chmod(0o770)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() != folder, "others can write to it"


@pytest.mark.parametrize("spoiled", ["folder", "digest", "link"])
def test_what_others_can_write_is_not_loaded(tmp_path: Path, spoiled: str) -> None:
    """Neither built there nor loaded from there: the refusal names who could change what."""
    folder = tmp_path / "made"
    target = build(folder)
    assert build(folder) == target
    if spoiled == "folder":
        folder.chmod(0o777)
    elif spoiled == "digest":
        target.chmod(0o775)
    else:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        target.rename(tmp_path / "open" / target.name)
        target.symlink_to(tmp_path / "open" / target.name)
    with pytest.raises(ArbiterError, match=r"not trusted: (every user|group \S+) can change"):
        build(folder)
    with pytest.raises(ArbiterError, match="not trusted"):
        SimGpu.create(tmp_path / "gpu", target, ("rtx4090-24g",))


@AS_ROOT
def test_a_library_of_another_user_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that is ours; loading it as it is would be refused."""
    target = build(tmp_path)
    os.chown(target / SONAME, 65534, 65534)
    monkeypatch.setattr(ctypes, "CDLL", lambda _path: pytest.fail("loaded"))
    with pytest.raises(ArbiterError, match="user nobody can change"):
        gpu._library(target)
    assert (build(tmp_path) / SONAME).stat().st_uid == 0


def test_no_name_in_tmp_can_be_foretold() -> None:
    """No program, script, test or example of ours writes to, or loads from, a fixed name there."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
    )
    names = done.stdout.split() or [
        str(one.relative_to(ROOT))
        for folder in ("arbiterd", "scripts", "tests", "docs", "etc", "units")
        for one in (ROOT / folder).rglob("*")
        if one.is_file()
    ]
    fixed = re.compile(
        r"gettempdir\(\)|(?:>|\bopen\(|\bPath\(|-o |\bcat |\btee )\s*[\"']?/tmp/[A-Za-z]"
    )
    found = []
    for name in names:
        path = ROOT / name
        if (
            name == "tests/sim/test_build.py"
            or not path.is_file()
            or name.startswith("tests/recorded")
        ):
            continue
        text = path.read_text(errors="ignore")
        found += [f"{name}: {line.strip()}" for line in text.splitlines() if fixed.search(line)]
    assert found == []
