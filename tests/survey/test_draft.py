"""What init writes: it passes check on the host it was written for, whatever lies there."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from arbiterd.config import check_devices, load
from arbiterd.core.memory.placement import headroom_bytes, place
from arbiterd.model.devices import Device
from arbiterd.quantities import GIB, MIB
from arbiterd.survey.draft import draft
from arbiterd.survey.facts import (
    CachedModel,
    EngineName,
    Image,
    OllamaModel,
    OllamaStore,
    SavedModel,
    Survey,
    UnitFacts,
    Venv,
    VllmRun,
)

HOMES = "/home"
RTX = Device("GPU-1", 0, "NVIDIA GeForce RTX 4090", "00000000:01:00.0", 24564 * MIB, 475 * MIB)
OTHER = Device("GPU-2", 1, "NVIDIA GeForce RTX 4090", "00000000:02:00.0", 24564 * MIB, 475 * MIB)
OLLAMA_UNIT = UnitFacts(
    "ollama.service",
    active="active",
    enabled="enabled",
    user="ollama",
    command=("/usr/local/bin/ollama", "serve"),
    environment=(("OLLAMA_MODELS", "/srv/ollama"), ("OLLAMA_HOST", "0.0.0.0")),
)
EVERYTHING = Survey(
    devices=(RTX,),
    units=(OLLAMA_UNIT,),
    programs=(("tensorflow", "/usr/bin/tensorflow_model_server"),),
    venvs=(
        Venv(f"{HOMES}/alice/vllm", f"{HOMES}/alice/vllm/bin/vllm", "0.33.0", "alice", open=False),
    ),
    cached=(CachedModel("Qwen/Qwen2.5-3B-Instruct", "alice"),),
    stores=(
        OllamaStore(
            "/srv/ollama",
            (
                OllamaModel("qwen2.5:3b", 2 * GIB, 100.0),
                OllamaModel("llama3.3:70b", 40 * GIB, 200.0),
                OllamaModel("nomic-embed-text:latest", 300 * MIB, 300.0),
            ),
            "ollama",
        ),
    ),
    saved_models=(SavedModel("resnet50", "/srv/models/resnet50"),),
)


def _checked(seen: Survey, *, images_run: bool = False) -> tuple[str, dict[str, object]]:
    """The draft, after `check` has accepted it on the devices it was written for."""
    text = draft(seen, images_run=images_run).text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gpu-arbiter.toml")
        path.write_text(text, encoding="utf-8")
        loaded = load(path, {})
    problems = check_devices(loaded, seen.devices) if seen.devices else ()
    assert not problems, text
    for mode in loaded.settings.modes.values():
        placed = place(mode, seen.devices, None)
        for device in seen.devices:
            caps = [p.cap_bytes for p in placed.values() if device.uuid in p.devices]
            assert sum(caps) + headroom_bytes(None, device) <= device.capacity_bytes or not caps
    return text, tomllib.loads(text)


def test_everything_on_one_card_is_fifteen_lines_and_a_few_comments() -> None:
    """The contract's caps, the models that were found, mode B explained away."""
    text, table = _checked(EVERYTHING)
    assert table["backends"] == {
        "tensorflow": {
            "command": ["/usr/bin/tensorflow_model_server"],
            "models": {"resnet50": "/srv/models/resnet50"},
        },
        "vllm": {
            "command": [f"{HOMES}/alice/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-3B-Instruct"],
            "user": "alice",
        },
        "ollama": {
            "command": ["/usr/local/bin/ollama", "serve"],
            "user": "ollama",
            "env": {"OLLAMA_MODELS": "/srv/ollama"},
            "models": ["qwen2.5:3b", "nomic-embed-text:latest"],
        },
    }
    assert table["modes"] == {
        "A": {
            "tensorflow": {"gpu": 0, "memory": "20%"},
            "vllm": {"gpu": 0, "memory": "55%"},
            "ollama": {"gpu": 0, "memory": "20%"},
        }
    }
    assert "# No [modes.B]: it needs a second GPU, or MIG slices." in text
    assert "`arbiterctl takeover ollama` disables it" in text
    assert "llama3.3:70b (40.00 GiB)" in text
    assert "so it runs as alice" in text
    lines = [one for one in text.splitlines() if one.strip() and not one.startswith("#")]
    assert len(lines) <= 15


def test_two_cards_get_a_mode_b() -> None:
    """TensorFlow Serving apart from the LLMs."""
    _, table = _checked(replace_devices(EVERYTHING, (RTX, OTHER)))
    assert table["modes"]["B"] == {  # type: ignore[index]
        "tensorflow": {"gpu": 1},
        "vllm": {"gpu": 0, "memory": "70%"},
        "ollama": {"gpu": 0, "memory": "25%"},
    }


def test_slices_are_named_by_uuid_and_each_engine_gets_one() -> None:
    """The card in MIG mode takes nobody itself."""
    parent = Device(
        "GPU-9", 0, "NVIDIA H100 80GB HBM3", "b", 81559 * MIB, 500 * MIB, mig_enabled=True
    )
    slices = tuple(
        Device(f"MIG-{n}", 0, "NVIDIA H100 MIG 2g.20gb", "b", 19968 * MIB, 0, parent_uuid="GPU-9")
        for n in range(3)
    )
    text, table = _checked(replace_devices(EVERYTHING, (parent, *slices)))
    assert table["modes"]["A"]["vllm"]["gpu"] == "MIG-0"  # type: ignore[index]
    assert {one["gpu"] for one in table["modes"]["B"].values()} == {"MIG-0", "MIG-1", "MIG-2"}  # type: ignore[index]
    assert "in MIG mode" in text


def test_one_engine_has_the_card_to_itself() -> None:
    """No percentage, no mode B."""
    seen = Survey(devices=(RTX, OTHER), units=(OLLAMA_UNIT,))
    text, table = _checked(seen)
    assert table["modes"] == {"A": {"ollama": {"gpu": 0}}}
    assert "# No [modes.B]: one engine needs no keeping apart." in text
    assert "no model found: any may load that fits" in text


def test_a_running_vllm_keeps_its_flags_but_none_of_ours_and_no_secret() -> None:
    """What the arbiter sets itself is taken out, and what nobody may read."""
    argv = (
        *("/opt/vllm/bin/vllm", "serve", "org/model", "--port", "8000", "--dtype", "half"),
        *("--gpu-memory-utilization=0.9", "--api-key", "hush"),
    )
    seen = Survey(
        devices=(RTX,),
        venvs=(
            Venv("/opt/new", "/opt/new/bin/vllm", "0.40.0", "root"),
            Venv("/opt/vllm", "/opt/vllm/bin/vllm", "0.33.0", "root"),
        ),
        vllm_runs=(VllmRun(argv, "pid 7"),),
    )
    text, table = _checked(seen)
    assert table["backends"] == {
        "vllm": {"command": ["/opt/vllm/bin/vllm", "serve", "org/model", "--dtype", "half"]}
    }
    assert "as pid 7 runs it" in text
    assert "hush" not in text


def test_only_an_image_is_a_comment_until_images_run() -> None:
    """The reason stands beside it."""
    seen = Survey(
        devices=(RTX,),
        images=(
            Image("docker", "tensorflow/serving:2.20.0", "tensorflow"),
            Image("docker", "tensorflow/serving:2.20.0-gpu", "tensorflow"),
        ),
        saved_models=(SavedModel("resnet50", "/srv/models/resnet50"),),
    )
    text, table = _checked(seen)
    assert table["backends"] == {}
    assert "# tensorflow: only its image is here (docker)" in text
    made = tomllib.loads(draft(seen, images_run=True).text)
    assert made["backends"]["tensorflow"] == {
        "image": "tensorflow/serving:2.20.0-gpu",
        "container": "docker",
        "models": {"resnet50": "/srv/models/resnet50"},
    }
    assert made["modes"]["A"] == {"tensorflow": {"gpu": 0}}


def test_without_nvml_the_caps_are_a_guess_and_say_so() -> None:
    """The reason is in the file."""
    why = "the GPUs cannot be read: NVML says: Driver Not Loaded"
    seen = Survey(nvml=why, units=(OLLAMA_UNIT,), venvs=EVERYTHING.venvs)
    text, table = _checked(seen)
    assert "# The GPUs could not be read: NVML says: Driver Not Loaded" in text
    assert "a guess" in text
    assert table["modes"]["A"] == {  # type: ignore[index]
        "vllm": {"gpu": 0, "memory": "69%"},
        "ollama": {"gpu": 0, "memory": "25%"},
    }


def replace_devices(seen: Survey, devices: tuple[Device, ...]) -> Survey:
    """The same host with other cards."""
    from dataclasses import replace

    return replace(seen, devices=devices)


# -- any host ------------------------------------------------------------------------------------
TEXT = st.text(max_size=12)
PATH = TEXT.map(lambda text: f"/srv/{text}")
SIZES = st.integers(1 * GIB, 200 * GIB)
ENGINES: st.SearchStrategy[EngineName] = st.sampled_from(["vllm", "ollama", "tensorflow"])
FLAGS = st.lists(
    st.sampled_from(
        ["--port", "8000", "--host=0.0.0.0", "--dtype", "half", "--served-model-name", "x", "-O3",
         "--max-model-len", "4096", "--api-key", "k", "--model", "m/n", "--enable-sleep-mode"]
    ),
    max_size=6,
)  # fmt: skip


@st.composite
def devices_(draw: st.DrawFn) -> tuple[Device, ...]:
    """GPUs, some cut into slices."""
    out: list[Device] = []
    for index in range(draw(st.integers(0, 3))):
        size = draw(SIZES)
        mig = draw(st.booleans())
        name = draw(st.sampled_from(["NVIDIA GeForce RTX 4090", "NVIDIA H100", "odd\nname"]))
        gpu = Device(f"GPU-{index}", index, name, f"{index}", size, size // 50, mig_enabled=mig)
        out.append(gpu)
        for part in range(draw(st.integers(0, 3)) if mig else 0):
            uuid = f"MIG-{index}-{part}"
            out.append(Device(uuid, index, name, f"{index}", size // 4, 0, parent_uuid=gpu.uuid))
    return tuple(out)


UNITS = st.builds(
    UnitFacts,
    name=st.sampled_from(["ollama.service", "snap.ollama.listener.service", "vllm.service"]),
    active=st.sampled_from(["active", "inactive"]),
    enabled=st.sampled_from(["enabled", "disabled"]),
    user=TEXT,
    command=st.sampled_from(
        [
            ("/usr/local/bin/ollama", "serve"),
            ("/usr/bin/docker", "run", "x"),
            (),
            ("/bin/sh", "-c", "x"),
        ]
    )
    | FLAGS.map(lambda flags: ("/v/bin/vllm", "serve", "org/m", *flags)),
    environment=st.dictionaries(
        st.sampled_from(["HF_HOME", "OLLAMA_HOST", "CUDA_VISIBLE_DEVICES", "A_TOKEN", "X Y", "é"]),
        TEXT,
    ).map(lambda found: tuple(found.items())),
    environment_files=st.sampled_from(
        [(), (("/etc/x.env", True),), (("/etc/a", False), ("/etc/b", False))]
    ),
    missing=st.sampled_from([(), ("MODEL",)]),
    directives=st.lists(
        st.tuples(st.sampled_from(["Group", "Restart", "ExecStartPre"]), TEXT), max_size=3
    ).map(tuple),
)
SURVEYS = st.builds(
    Survey,
    devices=devices_(),
    nvml=TEXT,
    units=st.lists(UNITS, max_size=2).map(tuple),
    programs=st.dictionaries(ENGINES, st.sampled_from(["/usr/bin/x", "/opt/a b/x"])).map(
        lambda found: tuple(found.items())
    ),
    venvs=st.lists(
        st.builds(Venv, PATH, PATH, TEXT, st.sampled_from(["root", "alice"]), st.booleans()), max_size=2
    ).map(tuple),
    vllm_runs=st.lists(
        st.builds(
            VllmRun, FLAGS.map(lambda f: ("/v/bin/vllm", "serve", *f)), st.just("pid 1")
        ),
        max_size=2,
    ).map(tuple),
    cached=st.lists(st.builds(CachedModel, TEXT.filter(bool), TEXT, st.booleans()), max_size=2).map(tuple),
    stores=st.lists(
        st.builds(
            OllamaStore,
            PATH,
            st.lists(st.builds(OllamaModel, TEXT, st.integers(0, 100 * GIB)), max_size=20).map(tuple),
            st.sampled_from(["", "root", "ollama", "gpu-engines"]),
        ),
        max_size=2,
    ).map(tuple),
    saved_models=st.lists(st.builds(SavedModel, TEXT, PATH), max_size=3).map(tuple),
    images=st.lists(
        st.builds(Image, st.sampled_from(["docker", "podman"]), PATH, ENGINES), max_size=3
    ).map(tuple),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(SURVEYS)
def test_whatever_is_found_the_file_passes_check(seen: Survey) -> None:
    """Odd names, slices, tiny cards, flags of ours in a running command: load and check agree."""
    _checked(seen)
