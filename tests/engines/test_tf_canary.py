"""Canary bodies of TensorFlow's signatures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from arbiterd.engines.tf_canary import MAX_BYTES, NoCanary, TensorflowTrials
from arbiterd.model.health import HttpReply
from arbiterd.model.settings import Kind
from tests.core.world import backend

TRIALS = TensorflowTrials()


def tensor(dtype: str, *dims: int, unknown: bool = False) -> dict[str, Any]:
    """As /metadata writes one: sizes are text."""
    rows = [{"size": str(size), "name": ""} for size in dims]
    return {"dtype": dtype, "tensor_shape": {"dim": rows, "unknown_rank": unknown}, "name": "x:0"}


def metadata(**signatures: dict[str, Any]) -> HttpReply:
    """The reply for these signatures, each a table of inputs."""
    made = {
        name: {"inputs": inputs, "outputs": {}, "method_name": "tensorflow/serving/predict"}
        for name, inputs in signatures.items()
    }
    text = {"metadata": {"signature_def": {"signature_def": made}}}
    return HttpReply(200, json.dumps(text), 1.0)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (tensor("DT_FLOAT", -1, 3), [[0.0, 0.0, 0.0]]),
        (tensor("DT_HALF", 2, -1, 1), [[[0.0]], [[0.0]]]),
        (tensor("DT_INT64", -1), [0]),
        (tensor("DT_UINT8", 1, 2), [[0, 0]]),
        (tensor("DT_BOOL", -1), [False]),
        (tensor("DT_STRING", -1), [""]),
        (tensor("DT_FLOAT"), 0.0),
        (tensor("DT_INT32", unknown=True), [0]),
        (tensor("DT_FLOAT", 0), []),
        ({"dtype": "DT_FLOAT"}, 0.0),
    ],
)
def test_zeros_have_type_and_shape_of_the_signature(given: dict[str, Any], wanted: object) -> None:
    """Unknown dimensions are 1, an unknown rank is a vector of one."""
    body = json.loads(TRIALS.body(metadata(serving_default={"x": given})))
    assert body == {"signature_name": "serving_default", "inputs": {"x": wanted}}
    assert type(_first(body["inputs"]["x"])) is type(_first(wanted))


def _first(value: Any) -> Any:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def test_every_input_is_there_and_the_only_signature_is_taken() -> None:
    """A model without serving_default has one that serves, or no canary."""
    two = {"a": tensor("DT_FLOAT", -1), 'b"': tensor("DT_STRING", -1)}
    assert json.loads(TRIALS.body(metadata(score=two))) == {
        "signature_name": "score",
        "inputs": {"a": [0.0], 'b"': [""]},
    }
    with pytest.raises(NoCanary, match="2 others"):
        TRIALS.body(metadata(one=two, other=two))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (metadata(serving_default={"x": tensor("DT_COMPLEX64", -1)}), "'x' is DT_COMPLEX64"),
        (metadata(serving_default={"x": tensor("DT_FLOAT", -1, 4096, 4096)}), "more than 1 MiB"),
        (metadata(serving_default={"x": tensor("DT_FLOAT", *[10**6] * 9)}), "more than 1 MiB"),
        (HttpReply(404, "", 1.0), "HTTP 404"),
        (HttpReply(0, "", 1.0, "no answer within 2 s"), "no answer within 2 s"),
        (HttpReply(200, "{}", 1.0), "names no signature"),
        (HttpReply(200, "[1]", 1.0), "names no signature"),
        (HttpReply(200, "<html>", 1.0), "names no signature"),
    ],
)
def test_no_body_has_a_reason(reply: HttpReply, why: str) -> None:
    """One sentence, for people."""
    with pytest.raises(NoCanary, match=why):
        TRIALS.body(reply)


def test_the_largest_body_is_a_mebibyte() -> None:
    """Just below it is made."""
    made = TRIALS.body(metadata(serving_default={"x": tensor("DT_FLOAT", -1, 262_000)}))
    assert MAX_BYTES * 0.99 < len(made) <= MAX_BYTES


def test_the_operators_body_is_for_the_first_model() -> None:
    """The others have their signature."""
    one = backend("tf", Kind.TENSORFLOW, models=("a", "b"), canary="/srv/a.json")
    assert [TRIALS.file(one, name) for name in TRIALS.models(one)] == ["/srv/a.json", ""]
