"""What Ollama's first model will take is known before it is loaded, by the load gate's own reckoning."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from arbiterd.fit.from_ollama_api import predicted_bytes, shape_of, weigh
from arbiterd.model.health import HttpProbe, HttpReply, LoadedModel
from arbiterd.sense import weighing
from tests.core.world import OLLAMA

TAGS = json.dumps(
    {"models": [{"name": "other:latest", "size": 7}, {"name": "m:latest", "size": 2_000_000_000}]}
)
INFO = {
    "general.architecture": "qwen2",
    "qwen2.block_count": 36,
    "qwen2.context_length": 32768,
    "qwen2.embedding_length": 2048,
    "qwen2.attention.head_count": 16,
    "qwen2.attention.head_count_kv": 2,
}
SHOW = json.dumps({"model_info": INFO, "capabilities": ["completion"]})
ONE = replace(OLLAMA, models=("m",))


def test_it_is_the_load_gates_reckoning() -> None:
    """By the same arithmetic, from the same two answers; by any spelling of the name."""
    own = ONE.ollama
    shape = shape_of(2_000_000_000, json.loads(SHOW))
    assert weigh(ONE, "m", TAGS, SHOW) == predicted_bytes(shape, own.context_length, own.parallel)


@pytest.mark.parametrize(
    ("tags", "show"),
    [
        ("", SHOW),
        ("[]", SHOW),
        ('{"models": [{}]}', SHOW),
        ('{"models": []}', SHOW),
        (TAGS, "7"),
        (TAGS, "no"),
    ],
)
def test_answers_that_do_not_tell_are_none(tags: str, show: str) -> None:
    """Garbage tells nothing, and ends no probe."""
    assert weigh(ONE, "m", tags, show) is None


def test_it_is_asked_before_it_is_loaded_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions that load nothing; none while it is resident."""
    asked: list[str] = []

    def answers(via: object, url: str, probe: HttpProbe) -> HttpReply:
        del via, url
        asked.append(probe.path)
        return HttpReply(200, TAGS if probe.path == "/api/tags" else SHOW, 1.0)

    monkeypatch.setattr(weighing, "ask", answers)
    found = weighing.weighed(None, "", ONE, (), weigh)  # type: ignore[arg-type]
    assert found == weigh(ONE, "m", TAGS, SHOW)
    assert asked == ["/api/tags", "/api/show"]
    here = (LoadedModel("m:latest", 1, 1),)
    assert weighing.weighed(None, "", ONE, here, weigh) is None  # type: ignore[arg-type]
    assert len(asked) == 2
