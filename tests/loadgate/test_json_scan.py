"""The scanner agrees with a parser about what is JSON and where a value ends, and builds nothing."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any, NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arbiterd.loadgate import json_scan
from arbiterd.loadgate.json_scan import DEPTH_MAX, NotJson, members

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=40,
)  # fmt: skip
layout = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])


def _no(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def oracle(raw: bytes) -> dict[str, Any] | None:
    """Python's parser; None for what is no object."""
    try:
        found = json.loads(raw.decode(), parse_constant=_no, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def scanned(raw: bytes) -> dict[str, Any] | None:
    """The same by way of the scanner's stretches."""
    try:
        return {key: json.loads(raw[start:end]) for key, start, end in members(raw)}
    except NotJson:
        return None


@given(st.dictionaries(st.text(max_size=4), values, max_size=4), layout, st.booleans())
def test_what_is_json_is_found_with_its_values(
    value: dict[str, Any], written: tuple[str, str], escape: bool
) -> None:
    """Any layout, any escape."""
    raw = json.dumps(value, separators=written, ensure_ascii=escape).encode()
    assert scanned(raw) == value


@given(
    st.dictionaries(st.text(max_size=3), values, min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.sampled_from([b"", b",", b":", b"]", b"}", b"{", b"[", b'"', b"\\", b"0", b"1e9", b"e", b".", b"-", b" ", b"\x00", b"x"]),
    st.booleans(),
)  # fmt: skip
@example({"a": [1, 2]}, 6, b",", False)
@example({"a": [[1], 2]}, 9, b"]", False)
def test_one_wrong_byte_is_judged_as_a_parser_judges_it(
    value: dict[str, Any], where: int, put: bytes, drop: bool
) -> None:
    """Inserted or replaced, anywhere."""
    raw = json.dumps(value, separators=(",", ":")).encode()
    at = where % len(raw)
    broken = raw[:at] + put + raw[at + drop :]
    assert scanned(broken) == oracle(broken)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 5000])
@pytest.mark.parametrize(
    "item", ["1", "[]", '{"a":[1]}', "[[[[1]]]]", '{"a":{"b":{"c":{}}}}', '"é\\n"', "1e308"]
)
def test_no_length_of_a_row_makes_a_difference(count: int, item: str) -> None:
    """Rows longer than one match, values deeper than one: whole, cut off, and with one wrong comma."""
    row = ",".join([item] * count)
    for text in (f'{{"a":[{row}]}}', f'{{"a":[[{row}],[{row}]]}}'):
        raw = text.encode()
        assert scanned(raw) == oracle(raw)
        for bad in (raw[:-2], raw.replace(b"]}", b",]}"), raw.replace(b"[", b"[,", 1)):
            assert scanned(bad) is None
    fields = ",".join(f'"k{i}":{item}' for i in range(count))
    raw = f'{{"a":{{{fields}}}}}'.encode()
    assert scanned(raw) == oracle(raw)
    assert scanned(raw[:-2] + b",}}") is None


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("unit", ["x", "\\n", "\\u00e9", "é"])
def test_no_length_of_a_string_makes_a_difference(size: int, unit: str) -> None:
    """Longer than one match takes."""
    raw = f'{{"a":"{unit * size}","b":1}}'.encode()
    assert scanned(raw) == oracle(raw)
    for bad in ('"\\q"', '"\\u12"', '"\x01"', '"'):
        assert scanned(f'{{"a":"{unit * size}{bad[1:]}}}'.encode()) is None


@pytest.mark.parametrize("opened", [b"[", b'{"a":', b'[{"a":'])
def test_depth_is_bounded(opened: bytes) -> None:
    """Within the limit it is JSON; a body of brackets is refused without recursion."""
    closed = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]"}[opened]
    levels = opened.count(b"[") + opened.count(b"{")
    good = 400 // levels
    assert members(b'{"x":' + opened * good + b"1" + closed * good + b"}")
    for count in (900 // levels, 100_000):
        with pytest.raises(NotJson, match=f"more than {DEPTH_MAX} deep"):
            members(b'{"x":' + opened * count)


def test_a_hostile_body_costs_no_memory_and_a_bounded_time() -> None:
    """Two million empty lists: a parser would take hundreds of megabytes for them."""
    raw = b'{"a":[' + b"[]," * 2_000_000 + b"1]}"
    tracemalloc.start()
    try:
        assert len(members(raw)) == 1
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep ones, which no single match passes over."""
    monkeypatch.setattr(json_scan, "STEPS_MAX", 1000)
    with pytest.raises(NotJson, match="too many values"):
        members(b'{"a":[' + b"[[[[1]]]]," * 5000 + b"1]}")
