"""What /api/show tells of a model, and the one set of options that every route gets."""

from __future__ import annotations

import pytest

from arbiterd.engines.ollama_models import About, about, runner_of

SHOW = {
    "parameters": 'num_ctx                        512\nstop                           "a"\nnum_gpu                        3',
    "modelfile": "# Modelfile\n# FROM tiny-c\n\nFROM /m/blobs/sha256-aa\nPARAMETER num_ctx 512\n",
    "capabilities": ["completion", "tools"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 4096},
}


def test_a_modelfiles_values_are_read() -> None:
    """Context, layers, trained context, and the file that its runner reads."""
    found = about(SHOW)
    assert (found.modelfile_ctx, found.num_gpu, found.trained) == (512, 3, 4096)
    assert found.weights == "/m/blobs/sha256-aa"
    assert not found.embeds


@pytest.mark.parametrize(
    ("parameters", "context_length", "options", "context"),
    [
        ("", 1024, {"num_ctx": 1024, "num_gpu": -1}, 1024),
        ("num_ctx 512", 1024, {"num_ctx": 512, "num_gpu": -1}, 512),
        ("num_ctx 2048", 1024, {"num_ctx": 1024, "num_gpu": -1}, 1024),
        ("num_gpu 3", 1024, {"num_ctx": 1024, "num_gpu": 3}, 1024),
        ("num_gpu 0", 1024, {"num_ctx": 1024, "num_gpu": 0}, 1024),
        ("", 8192, {"num_ctx": 8192, "num_gpu": -1}, 4096),
        ("num_ctx 1e+06", 8192, {"num_ctx": 8192, "num_gpu": -1}, 4096),
    ],
)
def test_every_route_gets_what_a_route_below_v1_yields(
    parameters: str, context_length: int, options: dict[str, int], context: int
) -> None:
    """The Modelfile's smaller context and its layers; the context never beyond the trained one."""
    found = about({**SHOW, "parameters": parameters})
    assert found.options(context_length) == options
    assert found.context(context_length) == context
    assert found.load_body("m", context_length, -1)["options"] == options


def test_a_model_with_vision_has_at_least_2048() -> None:
    """Ollama lifts it, whatever was asked."""
    found = about({"capabilities": ["completion", "vision"]})
    assert found.context(1024) == 2048


def test_names_of_one_file_share_a_runner() -> None:
    """Other names, other manifests, one blob of weights."""
    assert runner_of("a:latest", "x", about(SHOW)) == runner_of("b:latest", "y", about(SHOW))
    assert runner_of("A", "", About()) == runner_of("a:latest", "", About())
    assert runner_of("a", "sha", About()) == runner_of("alias", "sha", About())


def test_other_runner_options_of_a_modelfile_are_told_apart() -> None:
    """A runner with other threads or adapters is another one."""
    threads = about({**SHOW, "parameters": "num_thread 2"})
    adapter = about({**SHOW, "modelfile": f"{SHOW['modelfile']}ADAPTER /m/blobs/sha256-bb\n"})
    assert len({about(SHOW).rest, threads.rest, adapter.rest}) == 3


@pytest.mark.parametrize(
    "show", [{}, {"parameters": None, "model_info": None, "capabilities": None}, {"error": "x"}]
)
def test_what_is_not_told_stays_at_its_default(show: dict[str, object]) -> None:
    """An Ollama that does not answer makes no embedding model of anything."""
    assert about(show) == About()


def test_a_modelfile_without_an_end_is_seen() -> None:
    """num_predict 0 is the one number that Ollama does not cap."""
    assert about({"parameters": "num_predict 0"}).endless
    assert not about({"parameters": "num_predict -1"}).endless
