"""TensorFlow Serving's batching parameters and its command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.engines.batching import memory, parse, render
from arbiterd.engines.serving_flags import unknown
from arbiterd.errors import ConfigRefused
from arbiterd.model.engine_options import Batching

FULL = Batching(
    max_batch_size=32,
    batch_timeout_micros=5000,
    max_enqueued_batches=100,
    num_batch_threads=8,
    thread_pool_name="a pool",
    enable_large_batch_splitting=True,
    max_execution_batch_size=16,
    allowed_batch_sizes=(4, 16),
    pad_variable_length_inputs=True,
)


def test_every_field_is_written_and_read_back() -> None:
    """Wrapped values in braces, plain ones after a colon, as the proto has them."""
    text = render(FULL)
    assert "max_batch_size { value: 32 }" in text
    assert "allowed_batch_sizes: 4" in text
    assert "pad_variable_length_inputs: true" in text
    again, faults = parse(text)
    assert not faults
    assert (again.max_batch_size, again.allowed_batch_sizes) == (32, (4, 16))
    assert render(again) == text, "the operator's own text goes to the server as it is"


def test_a_file_is_read_in_every_spelling_of_the_text_form() -> None:
    """Comments, colons, separators, angle brackets, lists."""
    text = "# mine\nmax_batch_size: { value: 64 };\nnum_batch_threads <value: 2>\nallowed_batch_sizes: [8, 64]"
    made, faults = parse(text)
    assert not faults
    assert (made.max_batch_size, made.num_batch_threads) == (64, 2)
    assert made.allowed_batch_sizes == (8, 64)


@pytest.mark.parametrize(
    ("text", "line", "wrong", "right"),
    [
        ("\nmax_bach_size { value: 1 }", 2, "unknown field", "did you mean 'max_batch_size'?"),
        (
            "max_batch_size { value: many }",
            1,
            "no value that it takes",
            "max_batch_size { value: 32 }",
        ),
        ("pad_variable_length_inputs: 7", 1, "no value", "pad_variable_length_inputs: true"),
        ("max_batch_size @", 1, "cannot be read", "proto"),
    ],
)
def test_a_fault_has_its_line(text: str, line: int, wrong: str, right: str) -> None:
    """TensorFlow Serving itself would end with a parse error."""
    faults = parse(text)[1]
    assert faults[0].line == line
    assert wrong in faults[0].wrong
    assert right in faults[0].right


def test_what_it_means_for_memory_is_told() -> None:
    """Threads times the largest batch; without threads one batch per core."""
    assert "2 batches of up to 64 examples at a time, 128 examples" in memory(
        Batching(64, 5, num_batch_threads=2)
    )
    assert "one batch per CPU core" in memory(Batching())
    assert "up to 1000 examples" in memory(Batching()), "TensorFlow's own default"
    assert "up to 16 examples" in memory(FULL), "a large batch is split"


@pytest.mark.parametrize(
    ("flags", "wrong", "right"),
    [
        (["--rest_api_num_thread=8"], "knows no --rest_api_num_thread", "'--rest_api_num_threads'"),
        (["--rest-api-timeout-in-ms=5"], "knows no", "'--rest_api_timeout_in_ms'"),
        (["-num_load_threads=2"], "knows no", "'--num_load_threads'"),
        (["--model_name", "x"], "no value", "write --model_name=x"),
        (["stray"], "is no flag", "take it out"),
        (["--prefer_tflite_model", "true"], "'true' is no flag", "take it out"),
        (["--zzz=1"], "knows no --zzz", "take it out"),
    ],
)
def test_what_the_server_ignores_is_a_warning(flags: list[str], wrong: str, right: str) -> None:
    """It prints them to its log and serves."""
    (found,) = unknown(["numactl", "-N0", "tensorflow_model_server", *flags], frozenset())
    assert found.severity == "warning"
    assert wrong in found.wrong
    assert right in found.right


def test_known_flags_are_not_mentioned() -> None:
    """Nor ours, which are refused elsewhere, nor a program that is none of TensorFlow's."""
    command = [
        "/usr/bin/tensorflow_model_server",
        "--prefer_tflite_model",
        "--num_load_threads=2",
        "--port=1",
    ]
    assert unknown(command, frozenset({"port"})) == ()
    assert unknown(["my-server", "--own"], frozenset()) == ()


def _refused(tmp_path: Path, batching: str) -> list[str]:
    path = tmp_path / "f.toml"
    path.write_text(
        f'mode = "A"\n[backends.tensorflow]\nmodels = ["a"]\nbatching = {batching}\n'
        "[modes.A]\ntensorflow = { gpu = 0 }\n"
    )
    try:
        load(path, {})
    except ConfigRefused as refused:
        return [str(one).removeprefix(f"{path}:") for one in refused.problems]
    return []


def test_the_configuration_takes_a_table_or_a_path(tmp_path: Path) -> None:
    """Each problem is named as such, with file and line."""
    own = tmp_path / "batching.config"
    own.write_text("max_batch_size { value: 8 }\nnum_threads { value: 2 }\n")
    assert _refused(tmp_path, "{ num_batch_threads = 4 }") == []
    assert _refused(tmp_path, "{ max_batch = 4 }") == [
        "4: backends.tensorflow.batching.max_batch: unknown key 'max_batch'; did you mean 'max_batch_size'?"
    ]
    (problem,) = _refused(tmp_path, f'"{own}"')
    assert f"{own} line 2: unknown field 'num_threads'" in problem
    (problem,) = _refused(tmp_path, f'"{tmp_path}/none"')
    assert "cannot be read: No such file or directory" in problem
    (problem,) = _refused(tmp_path, "{ max_batch_size = 8, allowed_batch_sizes = [4, 16] }")
    assert "end with 16, but max_batch_size is 8" in problem
    (problem,) = _refused(tmp_path, "{ allowed_batch_sizes = [16, 4], max_batch_size = 4 }")
    assert "increasing order" in problem
    (problem,) = _refused(tmp_path, "7")
    assert "neither a table nor a path" in problem
