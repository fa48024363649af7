"""Play mutants: which tests run a line is measured once, then each mutant meets just those, the cheap ones first.

Each is played in a fork. A change within a function takes the place of the function's code in a process that has
collected all tests: it costs no import. A change of what runs at import (a constant, a default) needs a process of
its own. The limit is CPU time, so that a busy machine decides nothing. What was played is kept in build/mutate until
a file of core or of these tests changes.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import traceback
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from tests.mutate.mutants import Site, sites

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "arbiterd" / "core"
TESTS = ("tests/core", "tests/pins")
KEPT = ROOT / "build" / "mutate"
EXPLAINED = Path(__file__).with_name("explained.txt")
LEAST_S = 20  # CPU seconds of a mutant: importing alone takes two
PINS_WEIGHT = 20  # the pinned hour notices most changes: it comes as if it cost a twentieth
TIMES = 10  # what its tests take without it: a loop that a mutant made longer counts as noticed
OPTIONS = ("-q", "-n0", "--hypothesis-seed=0", "--tb=no", "--timeout=0", "-p", "no:randomly", "-p", "no:cacheprovider",
           "-W", "ignore::pytest.PytestAssertRewriteWarning")  # fmt: skip


class Played(NamedTuple):
    """A mutant and what became of it. ``why``: which test noticed, or why none could."""

    name: str
    killed: bool
    why: str


class Mutant(NamedTuple):
    """``name`` tells place and change; ``tree``: the changed file; ``inside``: within a function."""

    name: str
    path: Path
    tree: ast.Module
    inside: bool
    tests: tuple[str, ...]
    limit_s: int


class Measured(NamedTuple):
    """Which tests run which line, and the CPU seconds of each test."""

    lines: Mapping[str, Mapping[str, Sequence[str]]]
    seconds: Mapping[str, float]


def sample(count: int, seed: int, jobs: int, spend_s: float) -> list[Played]:
    """Play ``count`` mutants of all that core has; the same seed and source give the same ones. ``spend_s``: so
    many CPU seconds of tests for each, the cheapest first, 0 for all: then fewer are noticed than would be.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(KEPT / "hypothesis")
    measured = _measured()
    every = [
        (path, number)
        for path in sorted(CORE.rglob("*.py"))
        for number, _ in enumerate(sites(ast.parse(path.read_text())))
    ]
    chosen = random.Random(seed).sample(every, min(count, len(every)))
    mutants = [_mutant(path, number, measured, spend_s) for path, number in chosen]
    kept = KEPT / f"{_state()}-{spend_s:g}.jsonl"
    rows = kept.read_text().splitlines() if kept.exists() else ()
    done = {row[0]: Played(*row) for row in map(json.loads, rows)}
    left = [one for one in mutants if one.name not in done]

    def keep(found: Played) -> None:
        done[found.name] = found
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        mark = "killed" if found.killed else "SURVIVED"
        print(f"{len(done)}/{len(mutants)} {mark} {found.name} ({found.why})", flush=True)

    _play(left, jobs, keep)
    return [done[one.name] for one in mutants]


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
        command = [sys.executable, "-m", "tests.mutate.measure", *TESTS]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "MUTATE_OUT": str(kept)}, check=True)
    return Measured(*json.loads(kept.read_text()))


# -- mutants and their tests -------------------------------------------------------------------------
def _mutant(path: Path, number: int, measured: Measured, spend_s: float) -> Mutant:
    tree = ast.parse(path.read_text())
    site = sites(tree)[number]
    inside = any(
        isinstance(node, ast.FunctionDef) and node.body[0].lineno <= site.lines.start <= (node.end_lineno or 0)
        for node in ast.walk(tree)
    )  # fmt: skip
    tests = _tests(path, site, tree, measured, inside=inside)
    if spend_s:
        spent = list(accumulate(measured.seconds[one] for one in tests))
        tests = tests[: max(1, bisect(spent, spend_s))]
    name = f"{path.relative_to(ROOT)}:{site.node.lineno}: {site.told()}"
    limit = LEAST_S + TIMES * sum(measured.seconds[one] for one in tests)
    return Mutant(name, path, tree, inside, tests, int(limit))


def _tests(
    path: Path, site: Site, tree: ast.Module, measured: Measured, *, inside: bool
) -> tuple[str, ...]:
    """The tests that run these lines; of a line that only an import runs, those that run a line with the name
    that it defines, else all that run its file.
    """
    by_line = measured.lines.get(str(path.relative_to(ROOT)), {})
    found = {test for line in site.lines for test in by_line.get(str(line), ())}
    if not inside:
        made = [s for s in tree.body if s.lineno <= site.lines.start <= (s.end_lineno or 0)]
        names = {
            n.id
            for s in made
            for n in ast.walk(s)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        found |= {test for name in names for test in _readers(name, measured)}
        found = found or {test for tests in by_line.values() for test in tests}

    def rank(test: str) -> tuple[float, str]:
        return measured.seconds[test] / (PINS_WEIGHT if test.startswith("tests/pins") else 1), test

    return tuple(sorted(found, key=rank))


def _readers(name: str, measured: Measured) -> set[str]:
    out = set()
    for file, by_line in measured.lines.items():
        for line in _lines_with(file).get(name, ()):
            out |= set(by_line.get(str(line), ()))
    return out


@cache
def _lines_with(file: str) -> Mapping[str, set[int]]:
    """Lines of a file by the names that stand in them."""
    out: defaultdict[str, set[int]] = defaultdict(set)
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            out[node.id if isinstance(node, ast.Name) else node.attr].add(node.lineno)
    return out


# -- playing -----------------------------------------------------------------------------------------
def _play(mutants: Sequence[Mutant], jobs: int, keep: Callable[[Played], None]) -> None:
    """Each of them, those that cost an import last; ``keep`` is called as soon as one is played."""
    for one in mutants:
        if not one.tests:
            keep(Played(one.name, killed=False, why="no test runs it"))
    tried = [one for one in mutants if one.tests]
    players = Players([one for one in tried if one.inside], jobs, keep)
    code = pytest.main(["-s", *OPTIONS, *TESTS], plugins=[players])
    if code:
        raise RuntimeError(f"the tests cannot be collected: exit {code}")
    for found in _forked([one for one in tried if not one.inside], jobs, _by_import):
        keep(found)


def _forked(
    mutants: Sequence[Mutant], jobs: int, play: Callable[[Mutant], str]
) -> Iterator[Played]:
    """``play`` in a fork each: it returns which test noticed, "" for none."""
    waiting = list(mutants)
    running: dict[int, tuple[Mutant, Path]] = {}
    while waiting or running:
        if waiting and len(running) < jobs:
            one = waiting.pop(0)
            told = KEPT / f"played-{os.getpid()}-{len(waiting)}.txt"
            child = os.fork()
            if child == 0:
                _child(one, play, told)
            running[child] = one, told
            continue
        child, status = os.wait()
        one, told = running.pop(child)
        why = told.read_text() if told.exists() else ""
        told.unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(status)
        if code > 1:
            raise RuntimeError(f"{one.name} cannot be played:\n{why}")
        if code == 0:
            why = f"{len(one.tests)} tests pass"
        yield Played(one.name, killed=code != 0, why=why or "CPU time")


def _child(one: Mutant, play: Callable[[Mutant], str], told: Path) -> None:
    code = 2
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (one.limit_s, one.limit_s + 5))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        why = play(one)
        told.write_text(why)
        code = 1 if why else 0
    except BaseException:
        told.write_text(traceback.format_exc())
    finally:
        os._exit(code)


class Players:
    """In place of pytest's loop: every mutant on the tests that were collected."""

    def __init__(
        self, mutants: Sequence[Mutant], jobs: int, keep: Callable[[Played], None]
    ) -> None:
        self._mutants, self._jobs, self._keep = mutants, jobs, keep
        self._items: dict[str, list[pytest.Item]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running the tests."""
        for item in session.items:
            self._items.setdefault(item.nodeid.partition("[")[0], []).append(item)
        for found in _forked(self._mutants, self._jobs, self._by_code):
            self._keep(found)
        return True

    def _by_code(self, one: Mutant) -> str:
        codes = dict(_codes(compile(one.tree, str(one.path), "exec")))
        for made in gc.get_objects():
            if isinstance(made, FunctionType) and made.__code__.co_filename == str(one.path):
                made.__code__ = codes[_key(made.__code__)]
        items = [item for test in one.tests for item in self._items[test]]
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(
                report.failed for report in runtestprotocol(item, log=False, nextitem=following)
            ):
                return item.nodeid
        return ""


def _codes(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield _key(inner), inner
            yield from _codes(inner)


def _key(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


class Watch:
    """Remembers the first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each phase of a test."""
        self.failed = self.failed or (report.nodeid if report.failed else "")


def _by_import(one: Mutant) -> str:
    os.chdir(ROOT)
    module = ".".join(one.path.relative_to(ROOT).with_suffix("").parts)
    sys.meta_path.insert(0, _Finder(module, one.path, compile(one.tree, str(one.path), "exec")))
    watch = Watch()
    code = pytest.main(["-x", *OPTIONS, *one.tests], plugins=[watch])
    return watch.failed or (f"exit {int(code)}" if code else "")


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
