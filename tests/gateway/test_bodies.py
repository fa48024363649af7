"""The clamps, against a parser with Go's rules: whatever a client writes, Ollama reads our values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arbiterd.gateway.bodies import (
    RUNNER_OPTIONS,
    BadBody,
    Clamp,
    clamped,
    go_seconds,
    keep_alive,
    parse,
)

CLAMP = Clamp(context_length=8192, keep_alive_s=600, warm="qwen2.5:3b")
_FIELDS = ("model", "prompt", "options", "keep_alive", "stream", "messages", "input", "num_ctx")


def go_fold(key: str) -> str:
    """encoding/json's foldName: letter case, and the two runes that fold into ASCII."""
    return "".join({"ſ": "s", "\u212a": "k"}.get(c, c) for c in key).lower()


def go_read(raw: bytes) -> dict[str, Any]:
    """Struct fields as Go would fill them: every case, the last wins, objects merge into maps."""
    fields: dict[str, Any] = {}
    pairs = json.loads(raw, object_pairs_hook=list)
    for key, value in pairs:
        name = next((f for f in _FIELDS if go_fold(key) == go_fold(f)), None)
        if name is None or value is None:
            continue
        if name == "options":
            merged = fields.setdefault("options", {})
            merged.update(dict(value))
        else:
            fields[name] = value
    return fields


def spellings(word: str) -> st.SearchStrategy[str]:
    """Every letter case, and the folding runes."""

    def choices(letter: str) -> list[str]:
        more = {"s": ["ſ"], "k": ["\u212a"]}.get(letter, [])
        return [letter, letter.upper(), *more]

    return st.tuples(*(st.sampled_from(choices(c)) for c in word)).map("".join)


scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=8)
option = st.tuples(
    st.sampled_from(sorted(RUNNER_OPTIONS)).flatmap(spellings)
    | st.sampled_from(["temperature", "seed"]),
    scalars,
)
options = st.lists(option, max_size=5)
member = st.one_of(
    st.tuples(spellings("options"), options.map(lambda pairs: ("obj", pairs))),
    st.tuples(spellings("keep_alive"), scalars),
    st.tuples(spellings("model"), st.sampled_from(["qwen2.5:3b", "llama3.2:1b"])),
    st.tuples(spellings("num_ctx"), scalars),
    st.tuples(st.text(min_size=1, max_size=6), scalars),
)


def write(members: list[tuple[str, Any]], escape: bool) -> bytes:
    """JSON text with duplicates as they stand."""

    def text(value: Any) -> str:
        if isinstance(value, tuple) and value and value[0] == "obj":
            return "{" + ",".join(f"{json.dumps(k)}:{text(v)}" for k, v in value[1]) + "}"
        return json.dumps(value, ensure_ascii=escape)

    return (
        "{" + ",".join(f"{json.dumps(k, ensure_ascii=escape)}:{text(v)}" for k, v in members) + "}"
    ).encode()


@given(st.lists(member, max_size=10), st.booleans(), st.booleans())
@example(
    [("Options", ("obj", [("num_ctx", 99)])), ("optionſ", ("obj", [("NUM_CTX", 131072)]))],
    True,
    False,
)
@example([("keep_alive", 5), ("\u212aeep_alive", -1)], False, False)
def test_no_spelling_gets_past_the_clamp(
    members: list[tuple[str, Any]], escape: bool, v1: bool
) -> None:
    """Duplicates, letter case, escapes, merging objects: Go reads our values and nothing else."""
    body = parse(write([("model", "qwen2.5:3b"), *members], escape))
    seen = go_read(clamped(body, CLAMP, v1=v1))
    assert seen["model"] == body.model
    if v1:
        assert not {"options", "keep_alive", "num_ctx"} & seen.keys()
        return
    assert seen["options"]["num_ctx"] == 8192
    assert seen["options"]["num_gpu"] == -1
    folded = [go_fold(key) for key in seen["options"]]
    assert sorted(k for k in folded if k in RUNNER_OPTIONS) == ["num_ctx", "num_gpu"]
    assert seen["keep_alive"] == (-1 if body.model == "qwen2.5:3b" else seen["keep_alive"])
    if body.model != "qwen2.5:3b":
        assert 0 < (go_seconds(seen["keep_alive"]) or 0) <= 600


@given(
    st.lists(
        st.tuples(spellings("model"), st.sampled_from(["a", "b", "c"])), min_size=1, max_size=5
    )
)
def test_the_model_that_is_checked_is_the_one_go_reads(members: list[tuple[str, str]]) -> None:
    """The last duplicate, in whatever case."""
    raw = write(list(members), escape=False)
    assert parse(raw).model == go_read(raw)["model"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"3", b"{", b'{"a":1}{"b":2}', b'{"a":NaN}', b'{"model":5}', b"[" * 100_000, b'{"options":[1]}',
     b'{"a":' * 2000 + b"1" + b"}" * 2000],
)  # fmt: skip
def test_what_is_no_body_is_refused_in_a_sentence(raw: bytes) -> None:
    """Never a traceback, never a guess."""
    with pytest.raises(BadBody) as told:
        clamped(parse(raw), CLAMP, v1=False)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("asked", "answer"),
    [(None, "600s"), (-1, "600s"), (0, "600s"), ("5m", "300s"), ("24h", "600s"), ("1m30s", "90s"), (60, "60s"),
     ("-1s", "600s"), ("soon", "600s"), (True, "600s"), ("0.5s", "1s")],
)  # fmt: skip
def test_keep_alive_is_at_most_the_configured_time(asked: object, answer: str) -> None:
    """Neither for ever nor at once: both would undo what the operator configured."""
    assert keep_alive(asked, CLAMP, "llama3.2:1b") == answer
    assert keep_alive(asked, CLAMP, "QWEN2.5:3b") == -1
