"""Where each engine's models are looked for, and what is said when they are not there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arbiterd.config import load
from arbiterd.fit.files import models_of
from arbiterd.fit.files.huggingface import hub_cache
from arbiterd.fit.types import ModelFacts, NoFacts
from arbiterd.model.settings import BackendSettings, Failover, Kind, Settings
from tests.config.test_good_files import FIFTEEN
from tests.core.world import backend
from tests.support.weights import (
    LLAMA_8B,
    QWEN_3B,
    QWEN_3B_GGUF,
    QWEN_3B_VALUES,
    gguf_bytes,
    hub_model,
    ollama_model,
    safetensors,
    saved_model,
)

REPO = "Qwen/Qwen2.5-3B-Instruct"


@pytest.fixture
def whole(tmp_path: Path) -> Settings:
    """A good file, engines as the user who asks."""
    path = tmp_path / "c.toml"
    path.write_text(f'{FIFTEEN}\n[arbiter]\nlauncher = "direct"\n')
    return load(path, {}).settings


def _vllm(*command: str, **over: Any) -> BackendSettings:
    return backend("vllm", Kind.VLLM, command=command or ("vllm", "serve", REPO), **over)


def _one(settings: Settings, wanted: BackendSettings) -> ModelFacts | NoFacts:
    (found,) = models_of(settings, wanted)
    return found


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({}, "/h/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/x"}, "/h/hf/hub"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/y"}, "/c"),
    ],
)
def test_the_hubs_cache_is_the_engines(env: dict[str, str], folder: str) -> None:
    """By its environment and its home, not by the operator's."""
    assert hub_cache(env, Path("/h")) == Path(folder)


def test_a_downloaded_model_is_found(tmp_path: Path, whole: Settings) -> None:
    """refs/main names the snapshot; two shards of bf16 are 6.17 GB."""
    hub_model(tmp_path / "hub", REPO, QWEN_3B, QWEN_3B_VALUES)
    found = _one(whole, _vllm(env={"HF_HOME": str(tmp_path)}))
    assert isinstance(found, ModelFacts)
    assert (found.weight_bytes, found.context) == (6_171_877_376, 32768)
    assert found.weights_text == "2 safetensors file(s), 16 bits"
    elsewhere = _vllm("vllm", "serve", REPO, "--download-dir", str(tmp_path / "hub"))
    assert isinstance(_one(whole, elsewhere), ModelFacts)


def test_what_is_not_downloaded_has_its_command(tmp_path: Path, whole: Settings) -> None:
    """With vLLM's own hf, into the engine's cache, as the engine's user."""
    wanted = _vllm("/opt/vllm/bin/vllm", "serve", REPO, env={"HF_HUB_CACHE": str(tmp_path)})
    found = _one(whole, wanted)
    assert isinstance(found, NoFacts)
    assert found.reason == f"not here yet: it is not in {tmp_path} yet"
    assert found.prefetch == f"/opt/vllm/bin/hf download {REPO} --cache-dir {tmp_path}"
    hub_model(tmp_path, REPO, QWEN_3B, 1000)
    other = replace(wanted, command=(*wanted.command, "--revision", "v2"))
    late = _one(whole, other)
    assert isinstance(late, NoFacts)
    assert "revision v2 is not in" in late.reason
    secret = _one(whole, replace(wanted, env={"HF_HUB_CACHE": "/nowhere"}, env_file="/etc/x"))
    assert isinstance(secret, NoFacts)
    assert "env_file is not read here" in secret.reason


def test_folders_and_gguf_files_serve_too(tmp_path: Path, whole: Settings) -> None:
    """vllm serve /PATH, and /PATH/FILE.gguf."""
    folder = tmp_path / "m"
    folder.mkdir()
    empty = _one(whole, _vllm("vllm", "serve", str(folder)))
    assert isinstance(empty, NoFacts)
    assert (empty.reason, empty.prefetch) == (
        f"not here yet: there is no config.json in {folder}",
        "",
    )
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    safetensors(folder / "model.safetensors", {"w": ("BF16", [64])})
    found = _one(whole, _vllm("vllm", "serve", str(folder)))
    assert isinstance(found, ModelFacts)
    assert found.weight_bytes == 128
    file = folder / "q.gguf"
    file.write_bytes(gguf_bytes(QWEN_3B_GGUF))
    packed = _one(whole, _vllm("vllm", "serve", str(file)))
    assert isinstance(packed, ModelFacts)
    assert (packed.quantised, packed.context) == (True, 32768)


@pytest.mark.parametrize(
    "model", ["s3://bucket/model", "/nowhere/model", "a/b/c", "../../etc", "x" * 5000]
)
def test_what_is_no_model_here_is_a_sentence(whole: Settings, model: str) -> None:
    """Never an error."""
    found = _one(whole, _vllm("vllm", "serve", model))
    assert isinstance(found, NoFacts)
    assert found.reason


def test_a_broken_file_is_a_sentence(tmp_path: Path, whole: Settings) -> None:
    """Naming the file."""
    snapshot = hub_model(tmp_path / "hub", REPO, QWEN_3B, 1000)
    (snapshot / "config.json").write_text("{")
    found = _one(whole, _vllm(env={"HF_HOME": str(tmp_path)}))
    assert isinstance(found, NoFacts)
    assert "config.json is no JSON" in found.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_what_may_not_be_read_says_so(tmp_path: Path, whole: Settings) -> None:
    """An operator without the engine's rights is told what to do, not that nothing is there."""
    hub = tmp_path / "hub"
    hub_model(hub, REPO, QWEN_3B, 1000)
    hub.chmod(0o700)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setegid(65534)
        os.seteuid(65534)
        try:
            said = repr(models_of(whole, _vllm(env={"HF_HOME": str(tmp_path)})))
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    assert "NoFacts" in said
    assert "Permission denied" in said or "this user may not" in said


def test_the_allow_list_is_weighed(tmp_path: Path, whole: Settings) -> None:
    """And what stands in for others; without a list any may load."""
    ollama_model(tmp_path, "qwen2.5:3b", QWEN_3B_GGUF, 1_929_903_264)
    wanted = backend(
        "ollama", Kind.OLLAMA, models=("qwen2.5:3b", "gone"), env={"OLLAMA_MODELS": str(tmp_path)}
    )
    rule = Failover("M", "vllm", "ollama", "qwen2.5:3b")
    known, gone = models_of(replace(whole, failover=(rule,)), wanted)
    assert isinstance(known, ModelFacts)
    assert isinstance(gone, NoFacts)
    assert gone.prefetch == "OLLAMA_HOST=127.0.0.1:11434 ollama pull gone"
    free = _one(whole, replace(wanted, models=()))
    assert isinstance(free, NoFacts)
    assert "any model may load" in free.reason


def test_the_highest_version_of_a_saved_model_counts(tmp_path: Path, whole: Settings) -> None:
    """10 is higher than 9; a folder without a version is named."""
    saved_model(tmp_path / "r", 1000, 10, 9)
    (tmp_path / "none").mkdir()
    paths = {"r": str(tmp_path / "r"), "none": str(tmp_path / "none"), "no": "/nowhere"}
    one, two, three = models_of(whole, backend("tensorflow", Kind.TENSORFLOW, model_paths=paths))
    assert isinstance(one, ModelFacts)
    assert (one.weight_bytes, one.weights_text) == (1002, "variables and graph of version 10")
    assert isinstance(two, NoFacts)
    assert "no version folder" in two.reason
    assert isinstance(three, NoFacts)
    by_flag = backend(
        "tensorflow", Kind.TENSORFLOW, command=("t", f"--model_base_path={tmp_path / 'r'}")
    )
    assert isinstance(_one(whole, by_flag), ModelFacts)
    assert isinstance(_one(whole, backend("tensorflow", Kind.TENSORFLOW)), NoFacts)
