"""Mutants of a Python file: each is one small change of its syntax tree that a test should notice.

Wording is left alone (strings, f-strings), and so is what changes no decision: annotations, decorators, ``strict=``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COUNTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_LEFT_ALONE = ("annotation", "returns", "decorator_list", "bases")


class Site(NamedTuple):
    """One possible change. ``apply`` makes it in the tree; ``lines`` are those that run where it matters."""

    node: ast.expr | ast.stmt
    lines: range
    apply: Callable[[], None]

    def told(self) -> str:
        """Make the change, and tell it: ``was -> now``, of a statement the first line."""
        was = ast.unparse(self.node).partition("\n")[0]
        self.apply()
        return f"{was} -> {ast.unparse(ast.fix_missing_locations(self.node))}".partition("\n")[0]


def sites(tree: ast.AST) -> list[Site]:
    """Every change of this tree, in one order for one source."""
    return [site for node in _nodes(tree) for site in _of(node)]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else (value,):
            wording = isinstance(child, ast.JoinedStr)
            strict = isinstance(child, ast.keyword) and child.arg == "strict"
            if (
                isinstance(child, ast.AST)
                and not wording
                and not strict
                and name not in _LEFT_ALONE
            ):
                yield from _nodes(child)


def _of(node: ast.AST) -> Iterator[Site]:
    match node:
        case ast.Compare():
            for at, op in enumerate(node.ops):
                swap = partial(node.ops.__setitem__, at, _COMPARED[type(op)]())
                yield Site(node, _lines(node), swap)
        case ast.BoolOp():
            yield _set(node, node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not()):
            yield _set(node, node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _COUNTED and not _text(node):
            yield _set(node, node, "op", _COUNTED[type(op)]())
        case ast.Constant(value=bool()):
            yield _set(node, node, "value", not node.value)
        case ast.Constant(value=int() | float() as number):
            yield _set(node, node, "value", number + 1)
        case ast.If(test=test) | ast.IfExp(test=test):
            yield _set(node, test, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Expr(value=ast.Call()):
            yield _set(node, node, "value", ast.Constant(None))
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            for part in node.generators:
                for at, test in enumerate(part.ifs):
                    yield Site(
                        node, _lines(test), partial(part.ifs.__setitem__, at, ast.Constant(True))
                    )
        case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
            yield _set(node, node, "func", ast.Name(_CALLED[name], ast.Load()))
        case ast.Call(func=ast.Name(id="replace")):
            for word in node.keywords:
                left = [one for one in node.keywords if one is not word]
                yield _set(node, word.value, "keywords", left)


def _text(node: ast.AST) -> bool:
    """Whether a sum joins texts, as far as its parts tell."""
    text = (ast.JoinedStr, ast.Constant)
    parts = [one for one in ast.iter_child_nodes(node) if isinstance(one, text)]
    return any(isinstance(getattr(one, "value", ""), str) for one in parts)


def _set(node: ast.expr | ast.stmt, at: ast.expr | ast.stmt, field: str, new: Any) -> Site:
    return Site(node, _lines(at), partial(setattr, node, field, new))


def _lines(node: ast.expr | ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)
