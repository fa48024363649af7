"""The readers of headers: what good files tell, what broken ones say, and that none does harm."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arbiterd.fit.files.gguf import read_metadata
from arbiterd.fit.files.hf_config import read_config
from arbiterd.fit.files.huggingface import Wanted, read_folder
from arbiterd.fit.files.ollama_store import manifest_path, read_model
from arbiterd.fit.files.read import Unreadable, read_json
from arbiterd.fit.files.safetensors import Tensors, read_header
from arbiterd.fit.types import KvLayers
from tests.support.weights import (
    LLAMA_8B,
    QWEN_3B,
    QWEN_3B_GGUF,
    gguf_bytes,
    hub_model,
    ollama_model,
    safetensors,
)

FUZZ = settings(
    max_examples=150,
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_a_safetensors_header_is_summed_up(tmp_path: Path) -> None:
    """Bytes of all data; plain floating values apart, since an engine may hold them in another width."""
    path = tmp_path / "m.safetensors"
    safetensors(path, {"a": ("F32", [3, 5]), "b": ("F8_E4M3", [8]), "c": ("BF16", [])})
    found = read_header(path)
    assert found == Tensors(data_bytes=60 + 8 + 2, float_values=16, float_bytes=62)
    assert found.loaded_bytes(2) == 8 + 16 * 2


def _header(**entry: Any) -> bytes:
    text = json.dumps({"t": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut off in its first 8 bytes"),
        (struct.pack("<Q", 1 << 63), "more than"),
        (struct.pack("<Q", 100) + b"{}", "cut off in its header"),
        (struct.pack("<Q", 4) + b"nope", "is no JSON"),
        (struct.pack("<Q", 2) + b"[]", "holds no JSON object"),
        (struct.pack("<Q", 90_000) + b"[" * 90_000, "is no JSON"),
        (_header(**{**GOOD, "dtype": "F99"}), "unknown dtype 'F99'"),
        (_header(**{**GOOD, "data_offsets": [0, 99]}), "its shape needs 8 bytes, not 99"),
        (_header(**{**GOOD, "shape": [25], "data_offsets": [0, 100]}), "promises 100 bytes"),
        (_header(**{**GOOD, "data_offsets": [8, 0]}), "no valid data_offsets"),
        (_header(**{**GOOD, "data_offsets": [True, 8]}), "no valid data_offsets"),
        (_header(**{**GOOD, "shape": [-2]}), "no valid shape"),
        (_header(**{**GOOD, "shape": [2.0]}), "no valid shape"),
    ],
)
def test_a_broken_safetensors_file_is_a_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    """With the file's name in it."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=r"m\.safetensors") as broken:
        read_header(path)
    assert said in str(broken.value)


def test_tensors_must_not_overlap(tmp_path: Path) -> None:
    """Bytes would be counted twice."""
    path = tmp_path / "m.safetensors"
    text = json.dumps({"a": GOOD, "b": {**GOOD, "data_offsets": [4, 12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    with pytest.raises(Unreadable, match="overlap"):
        read_header(path)


def test_a_gguf_header_is_read(tmp_path: Path) -> None:
    """Scalars, strings and short arrays are kept, the vocabulary is walked over."""
    path = tmp_path / "m.gguf"
    given_ = {**QWEN_3B_GGUF, "x.flag": True, "x.scale": 0.5, "x.per_layer": [1, 2, 3]}
    path.write_bytes(gguf_bytes(given_) + bytes(1000))
    found, size = read_metadata(path)
    assert found["qwen2.block_count"] == 36
    assert (found["x.flag"], found["x.scale"], found["x.per_layer"]) == (True, 0.5, [1, 2, 3])
    assert "tokenizer.ggml.tokens" not in found
    assert size == path.stat().st_size


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no GGUF file"),
        (b"GGML" + bytes(20), "is no GGUF file"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(16), "version 9 is not known"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "beyond all bounds"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 50), "a string of"),
        (gguf_bytes({"a": 1})[:-8] + struct.pack("<I", 77) + bytes(8), "unknown type 77"),
        (gguf_bytes({"a": ["x"]})[:-17] + struct.pack("<Q", 1 << 62), "more than 2000000 strings"),
        (gguf_bytes({"a": [1]})[:-12] + struct.pack("<Q", 1 << 62), "cut off"),
        (gguf_bytes(QWEN_3B_GGUF)[:-1], "cut off"),
    ],
)
def test_a_broken_gguf_file_is_a_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    """Huge counts are refused, not tried."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=r"m\.gguf") as broken:
        read_metadata(path)
    assert said in str(broken.value)


@pytest.mark.parametrize("make", ["fifo", "folder", "nothing", "device"])
def test_only_regular_files_are_opened(tmp_path: Path, make: str) -> None:
    """A FIFO would wait for a writer, /dev/zero would never end."""
    path = tmp_path / "m"
    if make == "fifo":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make == "device":
        path = Path("/dev/zero")
    for read in (read_header, read_metadata, read_json):
        with pytest.raises(Unreadable):
            read(path)


def _guarded(read: Callable[[Path], object], path: Path) -> None:
    """The room's own error or an answer, within 2 s (deadline) and 200 MB."""
    said = str(path)
    tracemalloc.start()
    try:
        read(path)
    except Unreadable as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path) in said
    assert peak < 200 * 10**6


@FUZZ
@given(data=st.binary(max_size=400))
def test_random_bytes_do_no_harm(tmp_path: Path, data: bytes) -> None:
    """To any reader, with and without the right beginning."""
    path = tmp_path / "m"
    for start in (b"", b"GGUF\x03\0\0\0", struct.pack("<Q", len(data))):
        path.write_bytes(start + data)
        for read in (read_header, read_metadata, read_json):
            _guarded(read, path)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a", "F32"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=5), _JSON, max_size=5))
def test_any_json_in_the_header_does_no_harm(tmp_path: Path, header: dict[str, Any]) -> None:
    """Right form, wrong content."""
    text = json.dumps(header).encode()
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    _guarded(read_header, path)


@FUZZ
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255))))
def test_damaged_gguf_does_no_harm(tmp_path: Path, cut: int, flips: list[tuple[int, int]]) -> None:
    """A good file cut off anywhere, any bytes turned."""
    small = {k: v for k, v in QWEN_3B_GGUF.items() if "tokenizer" not in k}
    data = bytearray(gguf_bytes({**small, "x.l": [1, 2], "x.s": ["a", "b"]})[: cut or None])
    for at, byte in flips:
        if at < len(data):
            data[at] = byte
    path = tmp_path / "m"
    path.write_bytes(data)
    _guarded(read_metadata, path)


@FUZZ
@given(
    config=st.dictionaries(
        st.sampled_from(sorted({*QWEN_3B, *LLAMA_8B, "text_config", "layer_types", "head_dim"})),
        _JSON,
    )
)
def test_any_config_does_no_harm(config: dict[str, Any]) -> None:
    """A count that is none is named; everything else comes out bounded."""
    layers: tuple[KvLayers, ...] = ()
    said, context = "/x/config.json: ", 0
    try:
        shape = read_config(config, Path("/x/config.json"))
        layers, context = shape.layers, shape.context
    except Unreadable as error:
        said = str(error)
    assert said.startswith("/x/config.json: ")
    assert all(0 <= one.values <= 1 << 24 for one in layers)
    assert 0 <= context <= 1 << 28


def test_the_worst_header_is_bounded_in_time(tmp_path: Path) -> None:
    """Two million empty strings, as many as are walked over."""
    path = tmp_path / "m.gguf"
    head = gguf_bytes({"a": ["x"]})[:-17]
    path.write_bytes(head + struct.pack("<Q", 2_000_000) + bytes(16_000_000))
    began = time.process_time()
    read_metadata(path)
    assert (
        time.process_time() - began < 20
    )  # usually 1 s of CPU; how busy the machine is does not count


def test_a_half_downloaded_model_is_named(tmp_path: Path) -> None:
    """One shard of two; one shard cut off; a checkpoint in 32 bits is loaded in 16."""
    snapshot = hub_model(tmp_path, "a/b", QWEN_3B, 1000)
    assert read_folder(snapshot, Wanted("a/b")).weight_bytes == 2000
    second = snapshot / "model-00002-of-00002.safetensors"
    safetensors(second, {"layer.1": ("BF16", [500])}, data=999)
    with pytest.raises(Unreadable, match="promises 1000 bytes of data, it has 999"):
        read_folder(snapshot, Wanted("a/b"))
    second.unlink()
    with pytest.raises(Unreadable, match="1 of its 2 weight files"):
        read_folder(snapshot, Wanted("a/b"))
    for one in snapshot.glob("model*"):
        one.unlink()
    safetensors(snapshot / "model.safetensors", {"w": ("F32", [1000])})
    single = read_folder(snapshot, Wanted("a/b"))
    assert (single.weight_bytes, single.weights_text) == (
        2000,
        "1 safetensors file(s), 4 KiB on disk, loaded with 16 bits",
    )
    assert read_folder(snapshot, Wanted("a/b", dtype="float32")).weight_bytes == 4000


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    """weight_map = {"w": "../../secret"}."""
    snapshot = hub_model(tmp_path, "a/b", QWEN_3B, 1000)
    index = snapshot / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "../../../secret"}}')
    with pytest.raises(Unreadable, match="outside its folder"):
        read_folder(snapshot, Wanted("a/b"))


def test_quantised_weights_count_as_they_are(tmp_path: Path) -> None:
    """FP8 with scales in 32 bits, an FP8 cache by the checkpoint's own wish."""
    quantised = {
        **LLAMA_8B,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "kv_cache_scheme": {"num_bits": 8, "type": "float"},
        },
    }
    snapshot = hub_model(tmp_path, "a/b", quantised, 1000)
    for one in snapshot.glob("model*"):
        one.unlink()
    safetensors(snapshot / "m.safetensors", {"w": ("F8_E4M3", [900]), "s": ("F32", [25])})
    found = read_folder(snapshot, Wanted("a/b"))
    assert (found.weight_bytes, found.quantised, found.kv_value_bytes) == (1000, True, 1.0)
    assert "quantised (compressed-tensors)" in found.weights_text


def test_ollamas_store_is_read(tmp_path: Path) -> None:
    """Size as /api/tags tells it (all layers), shape by the header, the Modelfile's context noted."""
    blob = ollama_model(tmp_path, "qwen2.5:3b", QWEN_3B_GGUF, 1_929_903_264, num_ctx=4096)
    found = read_model(tmp_path, "qwen2.5:3b")
    assert found.weight_bytes == 1_929_903_264 + len('{"num_ctx": 4096}') + 2
    assert (found.context, found.layers[0].count, found.layers[0].values) == (32768, 36, 512)
    assert "num_ctx 4096" in found.notes[0]
    with blob.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(Unreadable, match="has 1000 bytes, its manifest says 1929903264"):
        read_model(tmp_path, "qwen2.5:3b")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama3.1", "registry.ollama.ai/library/llama3.1/latest"),
        ("me/x:v2", "registry.ollama.ai/me/x/v2"),
        ("hf.co/org/Repo-GGUF:Q4_K_M", "hf.co/org/Repo-GGUF/Q4_K_M"),
    ],
)
def test_names_of_models_are_paths_of_manifests(tmp_path: Path, name: str, path: str) -> None:
    """[HOST/][NAMESPACE/]MODEL[:TAG]."""
    assert manifest_path(tmp_path, name) == tmp_path / "manifests" / path


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../b", "", "a:..", "a/b/c/d", "x:"])
def test_a_name_cannot_lead_out_of_the_store(tmp_path: Path, name: str) -> None:
    """Refused before any file is looked at."""
    with pytest.raises(Unreadable, match="not a model name"):
        manifest_path(tmp_path, name)


@FUZZ
@given(manifest=_JSON | st.fixed_dictionaries({"layers": st.lists(_JSON, max_size=3)}))
def test_any_manifest_does_no_harm(tmp_path: Path, manifest: Any) -> None:
    """Right place, wrong content."""
    path = manifest_path(tmp_path, "m")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    with pytest.raises(Unreadable):
        read_model(tmp_path, "m")
