"""What counts as a small change of a source file."""

from __future__ import annotations

import ast

import pytest

from tests.mutate.mutants import sites


def _changes(source: str) -> list[str]:
    count = len(sites(ast.parse(source)))
    return [sites(ast.parse(source))[n].told() for n in range(count)]


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a < b", ["a < b -> a <= b"]),
        ("a is None or b", ["a is None or b -> a is None and b", "a is None -> a is not None"]),
        ("not a", ["not a -> not not a"]),
        ("a * 2", ["a * 2 -> a / 2", "2 -> 3"]),
        ("if a:\n    b()", ["if a: -> if not a:", "b() -> None"]),
        ("[a for a in b if a]", ["[a for a in b if a] -> [a for a in b if True]"]),
        ("x = min(a)", ["min(a) -> max(a)"]),
        ("x = replace(a, b=c)", ["replace(a, b=c) -> replace(a)"]),
        ("x = True", ["True -> False"]),
    ],
)
def test_each_operator_makes_its_change(source: str, changes: list[str]) -> None:
    """Comparisons, logic, arithmetic, constants, branches, calls, filters and replaced fields."""
    assert sorted(_changes(source)) == sorted(changes)


@pytest.mark.parametrize(
    "source",
    ['a = "text"', 'f"{a + 1} of {2}"', "a: Literal[1]", "@dataclass(frozen=True)\nclass A: ...",
     "x = zip(a, b, strict=True)", '"a" + b', '"""Doc."""'],
)  # fmt: skip
def test_wording_and_declarations_are_left_alone(source: str) -> None:
    """No test of core reads them."""
    assert _changes(source) == []
