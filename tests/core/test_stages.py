"""How core is built: stages take what cannot be changed, and return what they change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from arbiterd.core.backend.backend_state import BackendState
from arbiterd.core.facts import Facts, Step
from arbiterd.core.memory.device_state import DeviceState
from arbiterd.core.state import State

CORE = Path(__file__).parents[2] / "arbiterd" / "core"
MUTABLE = ("list", "dict", "set", "bytearray", "Desk")


def _taken() -> Iterator[tuple[str, str]]:
    """(file: function, annotation) of every parameter in core."""
    for path in sorted(CORE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                    if one.annotation is not None:
                        yield f"{path.name}: {node.name}", ast.unparse(one.annotation)


def test_no_function_of_core_takes_what_it_could_change() -> None:
    """But for decide.py, which collects what the stages have said and ordered."""
    wrong = [
        (where, text)
        for where, text in _taken()
        if not where.startswith("decide.py") and text.split("[")[0] in MUTABLE
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", [Facts, Step, State, BackendState, DeviceState])
def test_what_stages_pass_on_is_frozen(kind: type) -> None:
    """And without a place for fields that nobody has declared."""
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not hasattr(kind, "__dict__") or "__dict__" not in vars(kind)
    assert fields(kind)


def test_phases_change_in_one_function() -> None:
    """phases.enter, which checks the table, alone asks the record for another phase."""
    writers: set[str] = set()
    callers: set[str] = set()
    for path in CORE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ("replace", "updated", "BackendState"):
                writers |= {path.name for one in node.keywords if one.arg == "phase"}
            if name.endswith(".entered"):
                callers.add(path.name)
    assert writers == {"backend_state.py"}
    assert callers == {"phases.py"}


def test_incidents_are_made_in_one_file() -> None:
    """Whoever wants one says so in a note."""
    makers = {
        path.name
        for path in CORE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Incident"
    }
    assert makers == {"incidents.py"}
