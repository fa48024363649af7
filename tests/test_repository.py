"""The repository itself: two commands, pinned packages, no hosts or paths of anybody's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests import shape

ROOT = Path(__file__).resolve().parents[1]


def _files() -> list[Path]:
    out = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    found = [ROOT / name for name in out.split("\0") if name]
    return [one for one in found if one.is_file()] or [
        p for p in ROOT.rglob("*.py") if ".venv" not in p.parts
    ]


def test_the_two_commands_are_in_the_readme() -> None:
    """And CI calls the test command."""
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


def test_every_package_is_pinned_by_hash_and_no_host_is_named() -> None:
    """requirements/*.txt."""
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert not re.search(r"https?://|--index-url|--find-links|--trusted-host", text), path
        pins = re.findall(r"^[a-zA-Z0-9_.-]+(?:\[[^]]*\])?==", text, re.MULTILINE)
        assert len(pins) > 5
        blocks = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)
        assert all("--hash=sha256:" in b for b in blocks if "==" in b.split("\n")[0]), path


def test_the_runtime_packages_are_those_the_project_names() -> None:
    """Every dependency of pyproject.toml is in the hashed file."""
    import tomllib

    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = (ROOT / "requirements" / "runtime.txt").read_text().lower()
    for one in named:
        name = re.split(r"[>=<\[]", one)[0].lower()
        assert re.search(rf"^{re.escape(name)}(\[[^]]*\])?==", pinned, re.MULTILINE), name


def test_files_stay_small_enough_to_be_read_in_one_sitting() -> None:
    """Under 400 lines each in the package (the catalogue is a table of texts)."""
    for path in (ROOT / "arbiterd").rglob("*.py"):
        assert len(path.read_text().splitlines()) < 420, path


def test_every_module_says_what_it_is_for() -> None:
    """A docstring first."""
    for path in _files():
        if path.suffix == ".py" and path.stat().st_size:
            text = path.read_text()
            assert text.startswith(('"""', 'r"""', "#!")), path


@pytest.mark.parametrize("word", ["/" + "work/", "/home" + "/", "pypi" + ".org", "../" + "shared"])
def test_nothing_names_a_machine_or_a_registry(word: str) -> None:
    """The project speaks of itself alone."""
    for path in _files():
        if path.name == "systemd-box" or path.suffix == ".png":
            continue
        assert word not in path.read_text(errors="replace"), path


def test_links_in_the_docs_lead_somewhere() -> None:
    """Relative links of README and docs/."""
    pages = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_hooks_are_what_make_check_calls() -> None:
    """No hook of .pre-commit-config.yaml is left out of `make check`, and no host is asked for one."""
    check = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"repo: (.*)", hooks)) == {"local"}
    tools = set(re.findall(r"entry: \.venv/bin/(\S+)", hooks))
    assert {"ruff", "mypy", "codespell", "shellcheck"} <= tools
    assert all(f"$(VENV)/bin/{tool} " in check.replace("\n", " ") for tool in tools), tools


def test_no_sentence_is_cut_into_what_is_wrong_and_what_is_right() -> None:
    """Both are fields (errors.Flaw, errors.Problem); the sentence is made where it is printed."""
    for path in sorted((ROOT / "arbiterd").rglob("*.py")):
        assert not re.search(r"\w*(partition|split)\(\"; \"\)", path.read_text()), path


# Data of others, compared as it comes: names of cards and addresses, keys of our own settings and fields.
LITERALS = {
    "'gpu' not in rest",
    "wanted.on_oom == 'stop'",
    "wanted.on_oom == 'cpu'",
    "holder == 'foreign'",
    "ref.kind == 'index'",
    "':' in host",
    "spec.env.get('CUDA_VISIBLE_DEVICES', '').split(',')",
}
_CUTS = ("startswith", "endswith", "split", "partition", "rpartition", "find", "replace")


def test_no_decision_reads_a_sentence() -> None:
    """Core compares types: better English must not change a policy."""
    found = set()
    for path in sorted((ROOT / "arbiterd/core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            sides: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                sides = node.args[:1] if node.func.attr in _CUTS else []
            if any(
                isinstance(s, ast.Constant) and isinstance(s.value, str) and s.value for s in sides
            ):
                found.add(ast.unparse(node))
    assert found == LITERALS


# Who makes and changes what core remembers: the record's own methods, or the file that judges it.
RECORDS = ("backend/backend_axes", "backend/backend_state", "memory/device_state", "state")
JUDGES = {
    "Vitals": "judge",
    "Sleep": "sleeping",
    "Canaries": "trying",
    "Effort": "progress",
    "Sampled": "pressure",
    "Reclaim": "reclaim",
    "Braked": "brakes",
    "DoorState": "doors",
    "Lease": "loads",
    "Switch": "switch",
    "Placed": "decide",
    "Carry": "carry",
}


def _dataclasses(path: Path) -> dict[str, set[str]]:
    """Fields by class."""
    return {
        node.name: {one.target.id for one in node.body if isinstance(one, ast.AnnAssign)}  # type: ignore[union-attr]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.decorator_list
    }


def _made(tree: ast.Module, records: dict[str, set[str]], others: list[set[str]]) -> set[str]:
    """The records that a file makes or changes; a change that fits several, by the first of them that the
    file is to change anyway, or none where it fits something else than a record.
    """
    found: set[frozenset[str]] = set()
    inner = {
        id(call): node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for call in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        name, keys = node.func.id, {one.arg for one in node.keywords if one.arg}
        if name in records and (node.args or node.keywords):
            found.add(frozenset({name}))
        elif name in ("replace", "updated", "later") and isinstance(
            node.args[0], ast.Name | ast.Attribute
        ):
            if name == "later":
                keys = {one.value for one in node.args[2:] if isinstance(one, ast.Constant)}  # type: ignore[misc]
            fit = {one for one, fields in records.items() if keys and keys <= fields}
            if ast.unparse(node.args[0]) == "self":
                fit = {inner[id(node)]} & set(records)
            if fit and not any(keys <= fields for fields in others):
                found.add(frozenset(fit))
    sure = {next(iter(one)) for one in found if len(one) == 1}
    return sure | {min(one) for one in found if not one & sure}


def test_each_record_of_core_is_made_and_changed_in_one_file() -> None:
    """A second one would have to know what the first has promised."""
    core = ROOT / "arbiterd/core"
    defined = {
        one: Path(name).stem for name in RECORDS for one in _dataclasses(core / f"{name}.py")
    }
    records = {
        one: fields for name in RECORDS for one, fields in _dataclasses(core / f"{name}.py").items()
    }
    paths = [*sorted(core.rglob("*.py")), ROOT / "arbiterd/model/events.py"]
    others = [
        fields
        for path in paths
        if path.stem not in defined.values()
        for fields in _dataclasses(path).values()
    ]
    places: dict[str, set[str]] = {}
    for path in sorted(core.rglob("*.py")):
        for one in _made(ast.parse(path.read_text()), records, others):
            places.setdefault(one, set()).add(path.stem)
    wanted = {one: {JUDGES.get(one, name)} for one, name in defined.items()}
    whole = {"DeviceState", "State"}  # nothing but axes: having() takes any of them
    assert places == {one: where for one, where in wanted.items() if one not in whole}


def test_a_setting_is_defined_once_and_no_rooms_are_a_circle() -> None:
    """By the figures that docs/architecture.md has."""
    found = dict(shape.figures(shape.read(ROOT)))
    assert found["definitions of a setting"] == "1"
    assert found["circles of rooms, of files"].startswith("0, ")
