"""Ollama's names: what one function makes of them, as a real 0.33 resolved them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiterd.engines.ollama_names import is_listed, key, parse, same_model

SPELLINGS = (
    "tiny-a", "tiny-a:latest", "TINY-A", "Tiny-A:Latest", "tiny-a:LATEST", "library/tiny-a",
    "registry.ollama.ai/library/tiny-a:latest", "registry.ollama.ai/library/tiny-a",
    "https://registry.ollama.ai/library/tiny-a", "http://Registry.Ollama.AI/Library/tiny-a",
    " tiny-a", "tiny-a ", "\ttiny-a\n", "\u00a0tiny-a", "tiny-a:local", "tiny-a:latest:local",
)  # fmt: skip
INVALID = (
    "", " ", "tiny-a:", "/tiny-a", "tiny-a/", "tiny-a@sha256:00", "a/b/c/d", "-tiny", ".tiny", "tiny a",
    "registry.ollama.ai/tiny-a", "https://tiny-a", "https:///library/tiny-a", "x:local:cloud", "tïny",
    "x" * 81, "x:" + "t" * 81, "n.s/tiny-a",
)  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_spellings_of_a_model_are_one(name: str) -> None:
    """Case, library, registry, scheme, blanks, the default tag, the source suffix ':local'."""
    assert key(name) == "tiny-a:latest"
    assert same_model(name, "tiny-a")
    assert is_listed("tiny-a", [name])


@pytest.mark.parametrize("name", INVALID)
def test_what_ollama_calls_an_invalid_name_is_nobodys(name: str) -> None:
    """Such a name equals itself only."""
    assert parse(name) is None
    assert key(name) == name
    assert not same_model(name, "tiny-a")


@pytest.mark.parametrize(
    ("left", "right"),
    [("tiny-a", "tiny-a:1b"), ("tiny-a", "me/tiny-a"), ("hf.co/me/tiny-a", "me/tiny-a"), ("tiny-a", "tiny-a:cloud"),
     ("a:20b", "a:20b-cloud"), ("localhost:5000/me/a", "localhost:5001/me/a"), ("tiny-a", "tiny-a-cloud")],
)  # fmt: skip
def test_other_models_stay_others(left: str, right: str) -> None:
    """Tag, namespace, host and its port count; a cloud model is never one on this disk."""
    assert not same_model(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [("Org/Model-1B", "org/model-1b"), ("hf.co/Me/A-GGUF:Q4_K_M", "HF.CO/me/a-gguf:q4_k_m"),
     ("localhost:5000/me/a", "https://LOCALHOST:5000/me/a:latest"), ("a:20b-cloud", "A:20B:cloud")],
)  # fmt: skip
def test_spellings_beyond_the_library(left: str, right: str) -> None:
    """Namespaces, other registries with a port, and ollama.com's own models."""
    assert same_model(left, right)


def test_the_key_is_what_the_list_of_resident_models_says() -> None:
    """/api/ps calls a model by its shortest name with a tag."""
    assert key("Qwen2.5:3B") == "qwen2.5:3b"
    assert key("registry.ollama.ai/Org/M") == "org/m:latest"
    assert key("hf.co/org/m") == "hf.co/org/m:latest"


@given(st.text(max_size=30))
def test_the_key_is_its_own_key(name: str) -> None:
    """Whatever is compared twice compares the same; a cloud model's mark has no spelling."""
    found = key(name)
    assert "~cloud" in found or key(found) == found
