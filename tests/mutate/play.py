"""Play mutants: which tests run a line is measured once, then each mutant meets just those, the cheap ones first.

The time limit is CPU time, so that a busy machine decides nothing. What was played is kept in build/mutate and not
played again until a file of core or of these tests changes.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from tests.mutate.mutants import sites

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "arbiterd" / "core"
TESTS = ("tests/core", "tests/pins")
KEPT = ROOT / "build" / "mutate"
EXPLAINED = Path(__file__).with_name("explained.txt")
LEAST_S = 20  # CPU seconds of a mutant: importing alone takes two
TIMES = 10  # what its tests take without it: a loop that a mutant made longer counts as noticed


class Played(NamedTuple):
    """A mutant and what became of it. ``why``: which test noticed, or why none could."""

    name: str
    killed: bool
    why: str


class Measured(NamedTuple):
    """Which tests run which line, and the CPU seconds of each test."""

    lines: Mapping[str, Mapping[str, Sequence[str]]]
    seconds: Mapping[str, float]


def sample(count: int, seed: int, jobs: int) -> list[Played]:
    """Play ``count`` mutants of all that core has; the same seed and source give the same ones."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / f"{_state()}.jsonl"
    done = {}
    if kept.exists():
        done = {row[0]: Played(*row) for row in map(json.loads, kept.read_text().splitlines())}
    measured = _measured()
    every = [
        (path, n)
        for path in sorted(CORE.rglob("*.py"))
        for n, _ in enumerate(sites(ast.parse(path.read_text())))
    ]
    chosen = random.Random(seed).sample(every, min(count, len(every)))
    out: list[Played] = []

    def one(at: tuple[Path, int]) -> Played:
        path, number = at
        tree = ast.parse(path.read_text())
        site = sites(tree)[number]
        where = f"{path.relative_to(ROOT)}:{site.node.lineno}"
        name = f"{where}: {site.told()}"
        if name in done:
            return done[name]
        tests = _tests(measured, path, site.lines, tree)
        killed, why = _play(path, tree, tests, measured) if tests else (False, "no test runs it")
        return Played(name, killed, why)

    with kept.open("a", encoding="utf-8") as file, ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(one, chosen):
            if found.name not in done:
                file.write(json.dumps(found) + "\n")
                file.flush()
            out.append(found)
            mark = "killed" if found.killed else "SURVIVED"
            print(f"{len(out)}/{len(chosen)} {mark} {found.name} ({found.why})", flush=True)
    return out


def explained() -> dict[str, str]:
    """Survivors that change nothing a test could see, with the reason: ``NAME # REASON`` a line."""
    if not EXPLAINED.exists():
        return {}
    rows = (row.partition(" # ") for row in EXPLAINED.read_text().splitlines() if row)
    return {name: reason for name, _, reason in rows}


def _state() -> str:
    """What the kept results hold for: core and its tests as they are."""
    files = [CORE, *(ROOT / one for one in TESTS)]
    texts = sorted(path for folder in files for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()[:12]


def _measured() -> Measured:
    """From build/mutate, or by a run of all tests under coverage."""
    kept = KEPT / f"{_state()}.json"
    if not kept.exists():
        print("measuring which test runs which line", flush=True)
        env = {**os.environ, "MUTATE_OUT": str(kept), **_QUIET}
        command = [sys.executable, "-m", "tests.mutate.measure", *TESTS]
        subprocess.run(command, cwd=ROOT, env=env, check=True)
    return Measured(*json.loads(kept.read_text()))


_QUIET = {"HYPOTHESIS_STORAGE_DIRECTORY": str(KEPT / "hypothesis")}


def _tests(measured: Measured, path: Path, lines: range, tree: ast.AST) -> list[str]:
    """The tests that run these lines; of a line that only an import runs, those that run its file."""
    by_line = measured.lines.get(str(path.relative_to(ROOT)), {})
    found = {test for line in lines for test in by_line.get(str(line), ())}
    if not found and not _in_function(tree, lines):
        found = {test for tests in by_line.values() for test in tests}
    return sorted(found, key=lambda one: (measured.seconds.get(one, 0.0), one))


def _in_function(tree: ast.AST, lines: range) -> bool:
    return any(
        isinstance(node, ast.FunctionDef | ast.Lambda)
        and node.lineno < lines.start <= (node.end_lineno or 0)
        for node in ast.walk(tree)
    )


def _play(
    path: Path, tree: ast.Module, tests: Sequence[str], measured: Measured
) -> tuple[bool, str]:
    limit = LEAST_S + TIMES * sum(measured.seconds.get(one, 0.0) for one in tests)
    told = KEPT / f"played-{os.getpid()}-{time.monotonic_ns()}.txt"
    for name in _PRELOADED:
        importlib.import_module(name)
    child = os.fork()
    if child == 0:
        _mutated_run(path, tree, tests, int(limit), told)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = told.read_text(errors="replace") if told.exists() else ""
    told.unlink(missing_ok=True)
    if status == 0:
        return False, f"{len(tests)} tests pass"
    noticed = next((row for row in text.splitlines() if row.startswith(("FAILED", "ERROR"))), "")
    return True, noticed.partition(" - ")[0][:120] or ("time" if status < 0 else f"exit {status}")


def _mutated_run(
    path: Path, tree: ast.Module, tests: Sequence[str], limit: int, told: Path
) -> None:
    """In the child: pytest with the mutant in the file's place. Never returns."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        out = os.open(told, os.O_CREAT | os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(_QUIET)
        os.chdir(ROOT)
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        sys.meta_path.insert(0, _Finder(module, path, compile(tree, str(path), "exec")))
        options = ("-x", "-q", "-n0", "--hypothesis-seed=0", "--tb=no", "--timeout=0")
        code = int(importlib.import_module("pytest").main([*options, *_PLUGINS, *tests]))
    finally:
        os._exit(code)


_PRELOADED = (
    "hypothesis",
    "pytest",
    "aiohttp",
    "psutil",
    "pydantic_settings",
    "structlog",
    "prometheus_client",
)
_PLUGINS = ("-p", "no:randomly", "-p", "no:cacheprovider")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds one module, whose code is the mutant's."""

    def __init__(self, module: str, path: Path, code: CodeType) -> None:
        self._module, self._path, self._code = module, path, code

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != self._module:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        return self._code

    def get_source(self, fullname: str) -> str:
        del fullname
        return self._path.read_text()
