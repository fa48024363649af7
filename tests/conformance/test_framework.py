"""The suite itself: the comparer sees what differs, the data is whole."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.cases import FOLDER, Case, load
from tests.conformance.compare import ANY_ORDER, MORE, differences, seen_answer
from tests.conformance.play import _left_s, _without
from tests.conformance.suite import summary
from tests.conformance.wire import Answer, request, text

ENGINES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        ("<text>", "a\nb"),
        ("<count>", 0),
        ("<ints>", [1, 2]),
        ("<vector of 2>", [0.1, -3]),
        ("chatcmpl-<n>", "chatcmpl-12"),
        (["a", MORE, "z"], ["a", "z"]),
        (["a", MORE, "z"], ["a", "a", "a", "z"]),
        (["<text>", MORE], ["a", "b"]),
        ([ANY_ORDER, {"n": 1}, {"n": 2}], [{"n": 2}, {"n": 1}]),
        ({"a": None}, {"a": None}),
    ],
)
def test_masks_stand_for_what_varies(expected: Any, seen: Any) -> None:
    """No difference."""
    assert [*differences(expected, seen)] == []


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        ("<text>", ""),
        ("<text>", 5),
        ("<count>", "3"),
        ("<count>", True),
        ("<ints>", []),
        ("<vector of 2>", [0.1]),
        ("chatcmpl-<n>", "cmpl-12"),
        (["a", MORE, "z"], ["a", "b", "z"]),
        (["a", MORE, "z"], ["a", "a"]),
        (["a", MORE], ["a", "b"]),
        (["a"], ["a", "a"]),
        ([ANY_ORDER, 1, 2], [1, 1]),
        ([ANY_ORDER, 1], [1, 2]),
        ({"a": 1}, {}),
        ({}, {"a": 1}),
        ({"a": None}, {}),
        (False, 0),
        (1, True),
        (0, 1),
        ({"a": 1}, [1]),
        ([1], {"a": 1}),
        (None, ""),
    ],
)
def test_a_difference_is_told(expected: Any, seen: Any) -> None:
    """At least one line."""
    assert [*differences(expected, seen)]


def test_what_a_case_does_not_name_must_not_be_there() -> None:
    """An extra header, an interim answer, a length of HEAD."""
    expected: dict[str, Any] = {
        "status": 200,
        "content_type": None,
        "framing": "length",
        "end": "clean",
        "body": {"text": ""},
    }
    headers = {"content-length": "0", "date": "today"}
    plain = Answer(200, headers, "length")
    assert [*differences(expected, seen_answer(plain, expected))] == []
    for other in (
        Answer(200, {**headers, "server": "x"}, "length"),
        Answer(200, headers, "length", interim=100),
        Answer(200, headers, "length", end="cut"),
        Answer(200, {**headers, "content-type": "text/plain"}, "length"),
    ):
        assert [*differences(expected, seen_answer(other, expected))], other


def test_the_bytes_of_a_request_are_those_the_step_names() -> None:
    """Chunks, odd versions, no Host, the port, long texts."""
    step = {"method": "POST", "path": "/x", "raw": "\u00ef", "http": "1.0", "no_host": True}
    assert request(step, 7) == (
        b"POST /x HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n",
        b"\xef",
    )
    step = {"method": "POST", "path": "/", "body": {"a": 1}, "chunked": True}
    head, body = request({**step, "headers": {"Origin": "http://127.0.0.1:@PORT@"}}, 7)
    assert b"Origin: http://127.0.0.1:7\r\n" in head
    assert b"Content-Length" not in head
    assert body == b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\n'
    assert text({"x": [{"repeat": "ab", "characters": 5}]}) == {"x": ["ababa"]}


def test_only_cases_of_the_clock_are_played_again() -> None:
    """A fixed wait, or seconds left; a list that is compared by names is no such case."""

    def timed(*steps: dict[str, Any]) -> bool:
        return Case("x", "x", "x", steps).timed

    assert timed({"do": "sleep", "s": 1})
    assert timed({"do": "ps", "expect": {"ps": [{"name": "a", "left_s": 60}]}})
    assert not timed({"do": "ps", "expect": {"ps": [{"name": "a", "left_s": "about 292 years"}]}})
    assert not timed({"do": "ps", "expect": {"ps": []}}, {"expect": {"status": 200}})


def test_a_case_that_was_played_again_is_listed_with_what_differed() -> None:
    """The count of passed cases alone would hide it."""
    said = [("conformance", "x, stand-in"), ("conformance again", "late: step 3: expected 1")]
    report = pytest.TestReport("a", ("f", 1, "a"), {}, "passed", None, "call", user_properties=said)
    assert summary([report]) == [
        "conformance: x, stand-in: 1 of 1 cases pass, 1 played again",
        "  again: late: step 3: expected 1",
    ]


def test_a_deviation_leaves_out_what_it_names_only() -> None:
    """By path, through lists."""
    value = {"a": [{"b": 1, "c": 2}], "d": 3}
    assert _without(value, ["a", "*", "b"]) == {"a": [{"c": 2}], "d": 3}
    assert _without(value, ["a", "b"]) == {"a": [{"c": 2}], "d": 3}
    assert _without(value, ["e", "b"]) == value


def test_time_left_is_near_what_was_recorded_or_told_as_it_is() -> None:
    """Go's nanoseconds; for ever."""
    assert _left_s("2318-11-28T14:32:45.358362679Z", 60) == "about 292 years"
    assert _left_s("2020-01-01T00:00:00.1Z", 60) < -60


@pytest.mark.parametrize("engine", ENGINES)
def test_every_case_says_what_it_shows_and_every_deviation_why(engine: str) -> None:
    """And names are told apart."""
    cases = load(engine)
    assert len({case.name for case in cases}) == len(cases) > 0
    for case in cases:
        assert case.shows, case.name
        assert any("expect" in step for step in case.steps), case.name
        for step in case.steps:
            assert not ("deviation" in step and not step["deviation"]["why"]), case.name
