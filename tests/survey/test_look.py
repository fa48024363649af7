"""Looking at real files, sockets and processes."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.linux import procfs
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.sim.gpu import SimGpu
from arbiterd.survey import access, engine_check, folders, listeners, models
from arbiterd.survey.facts import UnitFacts, Venv
from arbiterd.survey.look import store_of
from tests.support import PATIENCE_S, free_port

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
LIST = "application/vnd.docker.distribution.manifest.v2+json"


def _put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_names_of_ollama_models_are_those_that_ollama_shows(tmp_path: Path) -> None:
    """Registry and library are left out; a broken manifest is no model."""
    layers = {"mediaType": LIST, "layers": [{"size": 5}, {"size": 7}]}
    base = tmp_path / "manifests"
    for name in (
        "registry.ollama.ai/library/qwen2.5/3b",
        "registry.ollama.ai/bob/tuned/latest",
        "hf.co/bob/Model-GGUF/Q4_K_M",
    ):
        _put(base / name, json.dumps(layers))
    _put(base / "registry.ollama.ai/library/broken/latest", "{")
    store = models.ollama_store(str(tmp_path))
    assert store is not None
    assert {one.name: one.size_bytes for one in store.models} == {
        "qwen2.5:3b": 12,
        "bob/tuned:latest": 12,
        "hf.co/bob/Model-GGUF:Q4_K_M": 12,
    }
    assert store.owner == procfs.user_name(os.geteuid())
    assert models.ollama_store(str(tmp_path / "nowhere")) is None


def test_the_store_of_a_unit_is_its_variable_else_its_users_home() -> None:
    """HOME= of the unit counts, too."""
    command = ("/b/ollama", "serve")
    assert store_of(UnitFacts("o", command=command, environment=(("OLLAMA_MODELS", "/m"),))) == "/m"
    assert (
        store_of(UnitFacts("o", command=command, environment=(("HOME", "/h"),)))
        == "/h/.ollama/models"
    )
    assert store_of(UnitFacts("o", command=command, user="root")) == "/root/.ollama/models"
    assert store_of(UnitFacts("o", command=command, user="nobody-has-this")) == ""
    assert store_of(UnitFacts("v", command=("/v/vllm", "serve"))) == ""


def test_a_download_that_broke_off_is_not_in_the_cache(tmp_path: Path) -> None:
    """Links into blobs/ must lead somewhere."""
    hub = tmp_path / "hub"
    folder = hub / "models--org--name"
    _put(folder / "snapshots/1/config.json", "{}")
    blob = folder / "blobs/aa"
    blob.parent.mkdir()
    (folder / "snapshots/1/model.safetensors").symlink_to(blob)
    assert not models.in_cache(str(hub), "org/name")
    blob.write_text("weights")
    assert models.in_cache(str(hub), "org/name")
    assert [(m.name, m.servable) for m in models.cached_models(str(hub))] == [("org/name", True)]


@pytest.mark.parametrize(
    ("env", "hub"),
    [
        ({}, "/h/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/f"}, "/f/hub"),
        ({"HF_HOME": "/f", "HF_HUB_CACHE": "/c"}, "/c"),
    ],
)
def test_where_the_cache_is(env: dict[str, str], hub: str) -> None:
    """huggingface_hub's own order."""
    assert models.hub_folder(env, "/h") == hub


def test_the_walk_finds_environments_and_models(tmp_path: Path) -> None:
    """By the distribution, not the script's name; links and unknown environments are left alone."""
    real = tmp_path / "envs/one"
    _put(real / "pyvenv.cfg")
    _put(real / "bin/vllm", "#!/bin/sh\n").chmod(0o755)
    (real / "lib/python3.11/site-packages/vllm-0.33.0.dist-info").mkdir(parents=True)
    other = tmp_path / "envs/two"
    _put(other / "pyvenv.cfg")
    _put(other / "bin/vllm", "#!/bin/sh\n").chmod(0o755)
    (tmp_path / "link").symlink_to(real)
    _put(tmp_path / "models/resnet50/3/saved_model.pb")
    _put(tmp_path / "models/notes/x/saved_model.pb")
    found = folders.walk([str(tmp_path), str(tmp_path / "nowhere")])
    (venv,) = found.venvs
    assert (venv.folder, venv.version) == (str(real), "0.33.0")
    assert [(m.name, m.path) for m in found.saved_models.values()] == [
        ("resnet50", str(tmp_path / "models/resnet50"))
    ]
    assert found.unseen == []


def test_a_program_below_a_private_folder_is_not_open(tmp_path: Path) -> None:
    """By every folder above it."""
    program = _put(tmp_path / "bin/vllm", "#!/bin/sh\n")
    program.chmod(0o755)
    tmp_path.chmod(0o700)
    assert not folders.open_to_all(str(program))
    assert folders.open_to_all("/bin/sh")


def test_a_listener_is_named_by_its_pid() -> None:
    """This test itself."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        (one,) = listeners.look((port,), "/run/nowhere")
    assert (one.port, one.pid, one.ours) == (port, os.getpid(), False)
    assert f"pid {os.getpid()}" in listeners.who(one)
    assert listeners.look((port,), "/run/nowhere") == ()


@root_only
def test_access_is_asked_as_that_user(open_folder: Path) -> None:
    """The folder on the way, the path itself, what is not there, and root without capabilities."""
    shut = open_folder / "shut"
    file = _put(shut / "in/file", "x")
    file.chmod(0o600)
    os.chown(shut, 65534, 65534)
    shut.chmod(0o700)
    wants = [(str(file), "r"), (str(shut), "rwx"), (str(open_folder / "gone"), "r")]
    found = access.obstacles("nobody", wants)
    assert found is not None
    assert found[0] == access.Obstacle("nobody", str(file), "r", "r")
    assert found[1] is None
    assert found[2] == access.Obstacle("nobody", str(open_folder / "gone"), "?", "r")
    assert access.obstacles("root", [(str(file), "r")]) == [None]
    bare = access.obstacles("root", [(str(file), "r")], bare=True)
    assert bare == [access.Obstacle("root", str(shut), "x", "x")]
    assert found[0].words == f"user nobody may not read {file}"


def test_who_cannot_be_asked_for_is_no_answer() -> None:
    """None, not a guess."""
    assert access.obstacles("nobody-has-this-name", [("/", "r")]) is None


@pytest.mark.parametrize("tool", ["hf", "huggingface-cli"])
def test_a_model_that_is_not_fetched_comes_with_the_command(tmp_path: Path, tool: str) -> None:
    """As the engine's user, into the cache that the engine will read, with the venv's own tool."""
    _put(tmp_path / "v/bin/vllm").chmod(0o755)
    argv = (f"{tmp_path}/v/bin/vllm", "serve", "org/name")
    me = procfs.user_name(os.geteuid())
    env = {"HF_HOME": f"{tmp_path}/hf home"}
    backend = BackendSettings("vllm", Kind.VLLM, argv, 8000, 18000, user=me, env=env)
    venv = Venv(f"{tmp_path}/v", argv[0], "0.33.0", me, hf=f"{tmp_path}/v/bin/{tool}")
    found, _ = engine_check.check(backend, "/etc/x.toml", [venv])
    (one,) = [row for row in found if row.code == "not_fetched"]
    assert one.level == "advice"
    home = pwd.getpwuid(os.geteuid()).pw_dir
    assert one.mend == (
        f"runuser -u {me} -- env HOME={home} 'HF_HOME={tmp_path}/hf home' "
        f"{tmp_path}/v/bin/{tool} download org/name"
    )
    _put(tmp_path / "hf home/hub/models--org--name/snapshots/1/model.safetensors", "w")
    found, _ = engine_check.check(backend, "/etc/x.toml", [venv])
    assert [row for row in found if row.code == "not_fetched"] == []


def test_a_backend_whose_user_or_files_are_missing_says_so(tmp_path: Path) -> None:
    """Each once, with the command."""
    backend = BackendSettings("tf", Kind.TENSORFLOW, ("x",), 8501, 18501, user="nobody-has-this")
    (one,), _ = engine_check.check(backend, "/etc/x.toml", [])
    assert one.mend == "useradd --system --create-home --shell /usr/sbin/nologin nobody-has-this"
    me = procfs.user_name(os.geteuid())
    mine = replace(
        backend,
        user=me,
        env={"HOME": f"{tmp_path}/home"},
        env_file=f"{tmp_path}/secrets",
        model_paths={"resnet50": f"{tmp_path}/resnet50"},
    )
    found, _ = engine_check.check(mine, "/etc/x.toml", [])
    assert {row.what: row.mend for row in found if str(tmp_path) in row.what} == {
        f"tf: env_file {tmp_path}/secrets is not there": f"install -m 0600 /dev/null {tmp_path}/secrets",
        f"tf: its home folder: {tmp_path}/home is not there": (
            f"install -d -o {me} -g {access.group_of(me)} -m 0750 {tmp_path}/home"
        ),
        f"tf: model resnet50: {tmp_path}/resnet50 is not there": "sudoedit /etc/x.toml",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to ask for another user")
def test_a_folder_that_the_engine_could_not_make_is_told(open_folder: Path) -> None:
    """OLLAMA_MODELS below root's folder: the engine would end at once. The command printed mends it."""
    store = open_folder / "ollama" / "models"
    env = {"HOME": "/tmp", "OLLAMA_MODELS": str(store)}
    backend = BackendSettings("ollama", Kind.OLLAMA, ("x",), 11434, 21434, user="nobody", env=env)
    (one,) = [row for row in engine_check.check(backend, "/x", [])[0] if str(store) in row.what]
    assert (one.code, one.level) == ("folder", "blocks")
    assert f"user nobody may not make it in {open_folder}" in one.what
    subprocess.run(["sh", "-c", one.mend], check=True)
    assert store.owner() == "nobody"
    assert not [row for row in engine_check.check(backend, "/x", [])[0] if str(store) in row.what]
    env = {"HOME": "/tmp", "HF_HOME": f"{open_folder}/hf"}
    vllm = replace(backend, kind=Kind.VLLM, command=("vllm", "serve", "a/b"), env=env)
    (one,) = [row for row in engine_check.check(vllm, "/x", [])[0] if row.code == "folder"]
    assert one.mend == f"install -d -o nobody -g nogroup -m 0750 {open_folder}/hf/hub"


def test_persistence_is_read_in_a_child(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """The simulated card has it on; without a driver there is nothing to say."""
    argv = [sys.executable, "-m", "arbiterd.survey.persistence_worker"]
    done = subprocess.run(
        argv, env=sim_env, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert json.loads(done.stdout) == [[0, True]]
    del gpu
