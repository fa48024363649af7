"""The clamps, against a parser with Go's rules: whatever a client writes, Ollama reads our values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arbiterd.engines.ollama_models import ANEW
from arbiterd.loadgate.ollama_body import (
    RUNNER_OPTIONS,
    BadBody,
    Body,
    Clamp,
    Unload,
    go_seconds,
    keep_alive,
    parse,
    pieces,
    unload,
)
from arbiterd.loadgate.ollama_body import clamped as clamped_parts

CLAMP = Clamp(context_length=8192, keep_alive_s=600, warm="qwen2.5:3b")
_FIELDS = ("model", "prompt", "options", "keep_alive", "stream", "messages", "input", "num_ctx")


def clamped(body: Body, clamp: Clamp, *, v1: bool, path: str = "") -> bytes:
    """The body as it is sent."""
    return b"".join(pieces(clamped_parts(body, clamp, v1=v1, path=path)))


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
    stays = [v for k, v in members if go_fold(k) == "keep_alive" and v is not None]
    if not v1 and any(go_seconds(one) is None for one in stays):
        with pytest.raises(BadBody):
            clamped(body, CLAMP, v1=v1)
        return
    seen = go_read(clamped(body, CLAMP, v1=v1))
    assert seen["model"] == body.model
    if v1:
        assert not {"options", "keep_alive", "num_ctx"} & seen.keys()
        return
    assert seen["options"]["num_ctx"] == 8192
    assert seen["options"]["num_gpu"] == -1
    folded = [go_fold(key) for key in seen["options"]]
    assert sorted(k for k in folded if k in RUNNER_OPTIONS) == ["num_ctx", "num_gpu"]
    if unload(body, "/api/generate") is not Unload.NO:
        assert seen["keep_alive"] == 0
    elif body.model == "qwen2.5:3b":
        assert seen["keep_alive"] == -1
    else:
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
     b'{"a":' * 2000 + b"1" + b"}" * 2000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
     b'{"a":1e400}', b'{"a":[{"b":-1e999}]}', b'{"options":{"temperature":1e400}}', b'{"a":[NaN]}', b'{"a":-Infinity}',
     b'{"a":01}', b'{"a":1.}', b'{"a":+1}', b"{'a':1}", b'{"a":"\\x"}', b'{"a":"\n"}', b'{"a":1,}', b'{"a" 1}',
     b'{"a":' + b"9" * 400 + b"}", b'\xef\xbb\xbf{"a":1}', b'{"a":"' + b"x" * 300_000 + b'\xff"}', b'{"options":{"a":"' + b"x" * 70_000 + b'"}}',
     b"{" + b'"a":1,' * 1500 + b'"b":1}', b'{"' + b"k" * 5000 + b'":1}'],
)  # fmt: skip
def test_what_is_no_body_is_refused_in_a_sentence(raw: bytes) -> None:
    """Never a traceback, never a guess."""
    with pytest.raises(BadBody) as told:
        clamped(parse(raw), CLAMP, v1=False)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("asked", "answer"),
    [(None, "600s"), (-1, "600s"), (1e-12, 0), ("5m", "300s"), ("24h", "600s"), ("1m30s", "90s"), (60, "60s"),
     ("-1s", "600s"), (-2.5, "600s"), ("-1h", "600s"), ("soon", "600s"), ("", "600s"), ("-", "600s"), ("+", "600s"), (True, "600s"), ("0.5s", "1s")],
)  # fmt: skip
def test_keep_alive_is_at_most_the_configured_time(asked: object, answer: int | str) -> None:
    """Negative is the most, too; the warm model stays for ever unless it is sent away."""
    assert keep_alive(asked, CLAMP, "llama3.2:1b") == answer
    assert keep_alive(asked, CLAMP, "QWEN2.5:3b") == (0 if answer == 0 else -1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [("abc", 'time: invalid duration "abc"'), ("", 'time: invalid duration ""'), ("90", 'time: missing unit in duration "90"'),
     ("-1", 'time: missing unit in duration "-1"'), ("5 s", 'time: unknown unit " s" in duration "5 s"'), (" 5s", 'time: invalid duration " 5s"'),
     (True, "Unsupported type: 'bool'"), ([], "Unsupported type: '[]interface {}'"), ([1], "Unsupported type: '[]interface {}'"),
     ({}, "Unsupported type: 'map[string]interface {}'")],
)  # fmt: skip
def test_a_keep_alive_that_is_none_is_refused_in_ollamas_words(asked: object, says: str) -> None:
    """As recorded from 0.33: 400 before anything is loaded; below /v1 Ollama does not look at it."""
    body = parse(json.dumps({"model": "m", "keep_alive": asked, "keep_alivE": 5}).encode())
    with pytest.raises(BadBody) as told:
        clamped(body, CLAMP, v1=False)
    assert str(told.value) == says
    assert go_read(clamped(body, CLAMP, v1=True)) == {"model": "m"}


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, "0", "0s", "0m0s", "-0s", "0h"])
@pytest.mark.parametrize("model", ["llama3.2:1b", "qwen2.5:3b"])
def test_keep_alive_0_is_let_through(zero: object, model: str) -> None:
    """A client may send a model away, also the warm one."""
    assert keep_alive(zero, CLAMP, model) == 0


def test_what_was_sent_away_is_not_kept_by_a_request_that_does_not_mention_it() -> None:
    """It leaves when its last request has ended; one that asks for it to stay takes that back."""
    leaving = replace(CLAMP, leaving=True)
    assert keep_alive(None, leaving, "llama3.2:1b") == 0
    assert keep_alive(None, leaving, "qwen2.5:3b") == 0
    assert keep_alive("5m", leaving, "llama3.2:1b") == "300s"


@pytest.mark.parametrize(
    ("path", "more", "kind"),
    [
        ("/api/generate", {}, Unload.BARE),
        ("/api/generate", {"prompt": ""}, Unload.BARE),
        ("/api/generate", {"prompt": None}, Unload.BARE),
        ("/api/generate", {"prompt": "hi"}, Unload.AFTER),
        ("/api/generate", {"PROMPT": "hi"}, Unload.AFTER),
        ("/api/chat", {"messages": []}, Unload.BARE),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}, Unload.AFTER),
        ("/api/embed", {"input": []}, Unload.BARE),
        ("/api/embed", {"input": "x"}, Unload.AFTER),
        ("/api/embeddings", {"prompt": "x"}, Unload.AFTER),
        ("/v1/completions", {"prompt": "x"}, Unload.NO),
    ],
)
def test_what_keep_alive_0_asks_for(path: str, more: dict[str, Any], kind: Unload) -> None:
    """Without a prompt it only unloads; below /v1 Ollama does not hear it."""
    for spelling in ("keep_alive", "KEEP_ALIVE", "\u212aeep_alive"):
        body = parse(json.dumps({"model": "m", spelling: 0, **more}).encode())
        assert unload(body, path) is kind
        assert unload(parse(json.dumps({"model": "m", **more}).encode()), path) is Unload.NO


def sent(path: str, clamp: Clamp = CLAMP, **members: Any) -> dict[str, Any]:
    """The body as it goes to Ollama."""
    body = parse(json.dumps({"model": "m", **members}).encode())
    out: dict[str, Any] = json.loads(clamped(body, clamp, v1=path.startswith("/v1/"), path=path))
    return out


@pytest.mark.parametrize(
    ("path", "members", "where", "tokens"),
    [
        ("/api/generate", {"options": {"num_predict": 0}}, ("options", "num_predict"), 81920),
        ("/api/chat", {"options": {"num_predict": 0.4}}, ("options", "num_predict"), 81920),
        ("/api/generate", {"options": {"num_predict": 3}}, ("options", "num_predict"), 3),
        ("/api/generate", {"options": {"num_predict": -1}}, ("options", "num_predict"), -1),
        ("/v1/completions", {"max_tokens": 0}, ("max_tokens",), 81920),
        ("/v1/chat/completions", {"max_tokens": 0}, ("max_tokens",), 81920),
        ("/v1/chat/completions", {"max_tokens": 5}, ("max_tokens",), 5),
        ("/v1/responses", {"max_output_tokens": 0}, ("max_output_tokens",), 81920),
        ("/v1/messages", {"max_tokens": 0}, ("max_tokens",), 0),  # refused by Ollama itself
    ],
)
def test_no_tokens_become_the_engines_own_cap(
    path: str, members: dict[str, Any], where: tuple[str, ...], tokens: int
) -> None:
    """10 x num_ctx: with 0 it would never end."""
    found: Any = sent(path, **members)
    for key in where:
        found = found[key]
    assert found == tokens


def test_no_tokens_in_another_letter_case_and_without_a_word() -> None:
    """Go takes a field in any case; a Modelfile's own 0 counts when the body says nothing."""
    assert sent("/v1/completions", MAX_TOKENS=0)["MAX_TOKENS"] == 81920
    endless = replace(CLAMP, context_length=64, endless=True)
    assert sent("/api/generate", endless)["options"]["num_predict"] == 640
    assert sent("/v1/completions", endless)["max_tokens"] == 640
    assert sent("/v1/completions", endless, max_tokens=None)["max_tokens"] == 640
    assert "num_predict" not in sent("/api/generate")["options"]
    assert "max_tokens" not in sent("/v1/completions")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions"])
def test_nothing_that_starts_the_runner_anew_gets_through(path: str) -> None:
    """The options of a runner in one value, the context shift left to the model."""
    options = dict.fromkeys(ANEW, 1)
    found = sent(path, options=options, shift=False, Shift=True, truncate=False)
    assert not [key for key in found if key.lower() == "shift"]
    assert found.get("options", {"num_ctx": 8192, "num_gpu": -1}) == {
        "num_ctx": 8192,
        "num_gpu": -1,
    }


def test_a_later_null_takes_keep_alive_back() -> None:
    """Go empties a pointer for null: what was asked before does not count, in clamp and unload alike."""
    body = parse(b'{"model":"llama3.2:1b","keep_alive":0,"KEEP_ALIVE":null}')
    assert unload(body, "/api/generate") is Unload.NO
    assert json.loads(clamped(body, CLAMP, v1=False))["keep_alive"] == "600s"
    body = parse(b'{"model":"llama3.2:1b","keep_alive":null,"keep_alive":0}')
    assert unload(body, "/api/generate") is Unload.BARE
