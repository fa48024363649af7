"""The shape of the package in figures, of one or several trees beside each other (docs/architecture.md).

Usage: python -m tests.shape [REVISION or FOLDER...]

The simulator is left out. Rooms are the folders and files below arbiterd/, an arrow is a pair of rooms of which one
imports the other, a circle is a set of files that import each other.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

RECORDS = ("BackendState", "DeviceState", "State", "Desk")
SETTING = "drain_timeout"  # a setting like any other, to count its definitions by
GENERATED = re.compile(r"<!-- keys.*?<!-- end of keys -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tree:
    """``files``: modules of the package by name, each parsed; ``arrows``: who imports whom, by module."""

    folder: Path
    files: Mapping[str, ast.Module]
    lines: int
    arrows: frozenset[tuple[str, str]]


def read(folder: Path) -> Tree:
    """A tree from its folder."""
    paths = [one for one in (folder / "arbiterd").rglob("*.py") if "sim" not in one.parts]
    texts = {_name(folder, one): one.read_text(encoding="utf-8") for one in paths}
    files = {name: ast.parse(text) for name, text in texts.items()}
    arrows = frozenset(
        (name, to) for name, tree in files.items() for to in _imports(tree, files) if to != name
    )
    return Tree(folder, files, sum(len(text.splitlines()) for text in texts.values()), arrows)


def _name(folder: Path, path: Path) -> str:
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def _imports(tree: ast.Module, files: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                if inner in files or node.module in files:
                    yield inner if inner in files else node.module


def figures(tree: Tree) -> Iterator[tuple[str, str]]:
    """What is counted, and how much of it there is."""
    yield "files, lines", f"{len(tree.files)}, {tree.lines:,}"
    rooms = {_room(name) for name in tree.files} - {""}
    yield "rooms", str(len(rooms))
    pairs = {(_room(a), _room(b)) for a, b in tree.arrows if _room(a) != _room(b)}
    yield "arrows between rooms", str(len({(a, b) for a, b in pairs if a and b}))
    yield "circles of rooms, of files", f"{_circles(pairs)}, {_circles(tree.arrows)}"
    yield "fields of " + ", ".join(RECORDS), ", ".join(str(_fields(tree, one)) for one in RECORDS)
    yield "incidents opened, closed by hand", "{}, {}".format(*_by_hand(tree))
    yield "definitions of a setting", str(_definitions(tree))
    yield "functions that replace a file", str(len(_writers(tree)))


def _room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def _circles(arrows: set[tuple[str, str]] | frozenset[tuple[str, str]]) -> int:
    """Sets of two and more that reach each other."""
    to: dict[str, set[str]] = {}
    for one, other in arrows:
        to.setdefault(one, set()).add(other)
    reach = {one: _reached(one, to) for one in to}
    return len(
        {
            frozenset(o for o in reach[one] if one in reach.get(o, ()))
            for one in to
            if one in reach[one]
        }
    )


def _reached(start: str, to: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = to.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _fields(tree: Tree, name: str) -> int:
    """Own annotated fields of a class of core, 0 where there is none."""
    return max(
        (
            sum(isinstance(row, ast.AnnAssign) for row in node.body)
            + len(
                {ast.unparse(row) for row in ast.walk(node) if _own(row)} if name == "Desk" else ()
            )
            for module, file in tree.files.items()
            if module.startswith("arbiterd.core")
            for node in ast.walk(file)
            if isinstance(node, ast.ClassDef) and node.name == name
        ),
        default=0,
    )


def _own(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and ast.unparse(node).startswith("self.")
        and isinstance(node.ctx, ast.Store)
    )


def _by_hand(tree: Tree) -> tuple[int, int]:
    """Places in core that open and close incidents, conditions apart: where a file tells when its incidents
    are over (a function ``over``), core/conditions.py opens and closes them.
    """
    opened = closed = 0
    for module, file in tree.files.items():
        name = module.removeprefix("arbiterd.core.")
        if name == module or name in ("conditions", "incidents", "desk", "facts"):
            continue
        functions = {node.name for node in ast.walk(file) if isinstance(node, ast.FunctionDef)}
        level = any(one == "over" or one.endswith("_over") for one in functions)
        for node in ast.walk(file):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            opened += called.endswith("raise_incident") or (called == "facts.open" and not level)
            closed += called.endswith("close_incident") or called == "Close"
    return opened, closed


def _definitions(tree: Tree) -> int:
    """Where SETTING is written down as a setting: fields, mappings, lists of names, references."""
    names = (SETTING, f"{SETTING}_s")
    found = 0
    for module, file in tree.files.items():
        for node in ast.walk(file):
            field = isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in names
            listed = isinstance(node, ast.Constant) and node.value in names
            mapped = module.startswith("arbiterd.config") and isinstance(node, ast.keyword)
            found += field or listed or (mapped and node.arg in names)  # type: ignore[attr-defined]
    for page in (tree.folder / "docs").glob("*.md"):
        text = GENERATED.sub("", page.read_text(encoding="utf-8"))
        found += len(re.findall(rf"^{SETTING} = ", text, re.MULTILINE))
    return found


def _writers(tree: Tree) -> set[str]:
    """Functions that write a file of another name and put it in its place."""
    out = set()
    for module, file in tree.files.items():
        for function in ast.walk(file):
            if isinstance(function, ast.FunctionDef):
                calls = {ast.unparse(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
                if calls & {"os.replace", "os.rename", "temporary.replace"}:
                    out.add(f"{module}.{function.name}")
    return out


def _folder(given: str, into: Path) -> Path:
    """The folder of a tree; a revision is unpacked ``into`` one."""
    if Path(given).is_dir():
        return Path(given)
    packed = subprocess.run(
        ["git", "archive", given, "arbiterd", "docs"], capture_output=True, check=True
    ).stdout
    folder = into / given.replace(os.sep, "-")
    folder.mkdir()
    subprocess.run(["tar", "x", "-C", str(folder)], input=packed, check=True)
    return folder


def main() -> None:
    """Print the table."""
    given = sys.argv[1:] or ["."]
    with tempfile.TemporaryDirectory() as into:
        columns = [dict(figures(read(_folder(one, Path(into))))) for one in given]
    print(f"| | {' | '.join(given)} |\n| --- |{' --- |' * len(given)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(one[name] for one in columns)} |")


if __name__ == "__main__":
    main()
