"""The run lines of images: three engines, two clients, word for word where it matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from arbiterd.act.launch.containers import completed, exit_of
from arbiterd.core.backend.planning import launch_spec
from arbiterd.engines.base import LaunchContext
from arbiterd.engines.image import image_version, volume
from arbiterd.errors import LaunchError
from arbiterd.model.launch import Exit, LaunchSpec
from arbiterd.model.settings import Kind
from tests.core.world import backend
from tests.engines.test_launch_lines import CARD, SLICE

OTHER = replace(CARD, uuid="GPU-ccc", index=2)
TF = {
    "kind": Kind.TENSORFLOW,
    "image": "tensorflow/serving:2.19.0-gpu",
    "model_paths": {"half": "/srv/models/half"},
    "grpc": 18500,
}
VLLM = {"kind": Kind.VLLM, "image": "vllm/vllm-openai:v0.30.0", "version": "0.30.0"}
OLLAMA = {"kind": Kind.OLLAMA, "image": "ollama/ollama:0.33.0", "version": "0.33.0"}
OURS = ["--rm", "--init", "--pull=never", "--log-driver=none", "--security-opt=no-new-privileges"]


def line(
    given: Mapping[str, object], client: str = "docker", *devices: object, **over: object
) -> LaunchSpec:
    """The launch line of an image."""
    fields = {**given, **over}
    kind, grpc, version = fields.pop("kind"), fields.pop("grpc", 0), fields.pop("version", "")
    host = fields.pop("host", "127.0.0.1")
    assert isinstance(kind, Kind)
    context = LaunchContext(
        backend=backend(kind.value, kind, **fields),
        devices=devices or (CARD,),  # type: ignore[arg-type]
        cap_bytes=12 * 2**30,
        headroom_bytes=2**30,
        others_caps_bytes=9 * 2**30,
        host=str(host),
        port=18000,
        grpc_port=int(str(grpc)),
        files_dir="/run/x/backends/b",
        intent="i",
        version=str(version),
        container=client,
    )
    return launch_spec(context)


def options(spec: LaunchSpec) -> list[str]:
    """The client's own words, up to the image."""
    assert spec.container is not None
    return list(spec.argv[: spec.argv.index(spec.container.image)])


def after(spec: LaunchSpec) -> list[str]:
    """What follows the image."""
    assert spec.container is not None
    return list(spec.argv[spec.argv.index(spec.container.image) + 1 :])


@pytest.mark.parametrize("client", ["docker", "podman"])
@pytest.mark.parametrize("given", [TF, VLLM, OLLAMA], ids=["tensorflow", "vllm", "ollama"])
def test_what_every_line_has(given: Mapping[str, object], client: str) -> None:
    """Identity, init, no pull, loopback ports, env by name, the client as root."""
    spec = line(given, client)
    words = options(spec)
    kind = str(given["kind"])
    assert words[:2] == [client, "run"]
    assert set(OURS) <= set(words)
    assert f"--name=gpu-arbiter-{kind}" in words
    assert "--label=gpu-arbiter=/run/x/backends/b" in words
    assert f"--cidfile=/run/x/backends/b.{client}.cid" in words
    assert "--publish=127.0.0.1:18000:18000" in words
    assert "--env=CUDA_VISIBLE_DEVICES" in words
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "0"
    assert spec.user == "root"
    assert not spec.loopback_only, "an address filter on the client's unit would cut its port map"
    assert not any(word.startswith("--user") for word in words)


def test_tensorflows_line_word_for_word() -> None:
    """Its program instead of the image's bash, which would swallow SIGTERM; models and rendered files
    read-only at their own paths; REST and gRPC on loopback.
    """
    spec = line(TF)
    assert options(spec) == [
        "docker", "run", "--rm", "--init", "--pull=never", "--name=gpu-arbiter-tensorflow-serving",
        "--label=gpu-arbiter=/run/x/backends/b", "--cidfile=/run/x/backends/b.docker.cid",
        "--stop-timeout=10", "--log-driver=none", "--security-opt=no-new-privileges",
        "--gpus=device=GPU-aaa",
        "--publish=127.0.0.1:18000:18000", "--publish=127.0.0.1:18500:18500",
        "--mount=type=bind,src=/run/x/backends/b,dst=/run/x/backends/b,ro=true",
        "--mount=type=bind,src=/srv/models/half,dst=/srv/models/half,ro=true",
        "--env=CUDA_DEVICE_ORDER", "--env=CUDA_VISIBLE_DEVICES",
        "--entrypoint=tensorflow_model_server",
    ]  # fmt: skip
    assert after(spec)[:2] == ["--port=18500", "--rest_api_port=18000"]
    assert "--model_config_file=/run/x/backends/b/models.config" in after(spec)


def test_vllms_own_words() -> None:
    """Its program, everything within its own network, the host's shared memory, a cache that outlives
    the container.
    """
    spec = line(VLLM, "podman")
    words = options(spec)
    assert after(spec)[:6] == ["serve", "M", "--host", "0.0.0.0", "--port", "18000"]
    assert {"--ipc=host", "--entrypoint=vllm", "--pids-limit=-1"} <= set(words)
    assert "--device=nvidia.com/gpu=GPU-aaa" in words
    assert "--mount=type=volume,src=huggingface,dst=/root/.cache/huggingface" in words
    assert spec.env["NVIDIA_VISIBLE_DEVICES"] == "void", (
        "an image's =all would add every GPU by a hook"
    )


def test_a_local_model_and_a_named_cache_are_mounted() -> None:
    """HF_HOME is a folder of the host; a model by path is read-only."""
    spec = line(VLLM, command=("vllm", "serve", "/srv/m/q"), env={"HF_HOME": "/srv/hf"})
    mounts = [word for word in options(spec) if word.startswith("--mount")]
    assert mounts == [
        "--mount=type=bind,src=/srv/m/q,dst=/srv/m/q,ro=true",
        "--mount=type=bind,src=/srv/hf,dst=/srv/hf",
    ]


def test_volumes_of_the_file_win() -> None:
    """No second mount on what they hold; commas survive the CSV of --mount."""
    given = ("/data/hf:/root/.cache", "/srv/a,b:/srv/m:ro")
    spec = line(VLLM, command=("vllm", "serve", "/srv/m/q"), volumes=given)
    mounts = [word for word in options(spec) if word.startswith("--mount")]
    assert mounts == [
        "--mount=type=bind,src=/data/hf,dst=/root/.cache",
        '--mount=type=bind,"src=/srv/a,b",dst=/srv/m,ro=true',
    ]


@pytest.mark.parametrize(
    ("over", "mount"),
    [
        ({}, "--mount=type=volume,src=ollama,dst=/root/.ollama"),
        ({"env": {"OLLAMA_MODELS": "/srv/o"}}, "--mount=type=bind,src=/srv/o,dst=/srv/o"),
        ({"volumes": ("mine:/root/.ollama",)}, "--mount=type=volume,src=mine,dst=/root/.ollama"),
        ({"user": "1000"}, None),
    ],
)
def test_where_ollama_keeps_its_models(over: dict[str, object], mount: str | None) -> None:
    """The volume of its documentation, a folder named by OLLAMA_MODELS, or what volumes says; root's
    home is of no use to another user.
    """
    spec = line({**OLLAMA, **over})
    assert [word for word in options(spec) if word.startswith("--mount")] == (
        [mount] if mount else []
    )
    assert spec.env["OLLAMA_HOST"] == "0.0.0.0:18000"
    assert after(spec) == ["serve"]


@pytest.mark.parametrize(
    ("client", "devices", "words", "visible"),
    [
        ("docker", (CARD,), ["--gpus=device=GPU-aaa"], "0"),
        ("docker", (CARD, OTHER), ['--gpus="device=GPU-aaa,GPU-ccc"'], "0,1"),
        ("docker", (SLICE,), ["--gpus=device=MIG-bbb"], "0"),
        ("podman", (CARD, OTHER), ["--device=nvidia.com/gpu=GPU-aaa", "--device=nvidia.com/gpu=GPU-ccc"], "0,1"),
        ("podman", (SLICE,), ["--device=nvidia.com/gpu=MIG-bbb"], "0"),
    ],
)  # fmt: skip
def test_a_container_gets_its_devices_and_counts_them_from_0(
    client: str, devices: tuple[object, ...], words: list[str], visible: str
) -> None:
    """By uuid outside, by position inside: the runtime shows it no other."""
    spec = line(VLLM, client, *devices)
    assert [w for w in options(spec) if w.startswith(("--gpus", "--device"))] == words
    assert spec.env["CUDA_VISIBLE_DEVICES"] == visible


def test_device_id_uuid_is_kept_inside() -> None:
    """Who asks for it gets it."""
    assert line(OLLAMA, device_id="uuid").env["CUDA_VISIBLE_DEVICES"] == "GPU-aaa"


def test_on_the_cpu_no_gpu_is_asked_for_and_none_comes_by_default() -> None:
    """CUDA images ask for all by their environment."""
    given = backend("b", Kind.OLLAMA, image="o:0.33.0")
    context = LaunchContext(given, (), 0, 0, 0, "127.0.0.1", 18000, 0, "/run/x/backends/b", "i")
    spec = launch_spec(context)
    assert not any(word.startswith(("--gpus", "--device")) for word in spec.argv)
    assert (spec.env["NVIDIA_VISIBLE_DEVICES"], spec.env["CUDA_VISIBLE_DEVICES"]) == ("void", "")


def test_env_goes_by_name_save_what_the_client_reads_itself() -> None:
    """LD_PRELOAD is the engine's, not docker's."""
    spec = line(OLLAMA, env={"TOKEN": "s3cret", "LD_PRELOAD": "/x.so", "HTTPS_PROXY": "http://p"})
    words = options(spec)
    assert {"--env=TOKEN", "--env=LD_PRELOAD=/x.so", "--env=HTTPS_PROXY=http://p"} <= set(words)
    assert spec.env["TOKEN"] == "s3cret"
    assert not {"LD_PRELOAD", "HTTPS_PROXY"} & spec.env.keys()
    assert "s3cret" not in " ".join(spec.argv)


def test_user_is_the_containers() -> None:
    """The client stays root."""
    spec = line(VLLM, user="1000:1000")
    assert "--user=1000:1000" in options(spec)
    assert spec.user == "root"


def test_without_a_gateway_the_public_address_is_published() -> None:
    """IPv6 in brackets."""
    assert "--publish=0.0.0.0:18000:18000" in options(line(OLLAMA, host="0.0.0.0"))
    assert "--publish=[::1]:18000:18000" in options(line(OLLAMA, host="::1"))


def test_flags_alone_and_generic_images_keep_the_images_entrypoint() -> None:
    """As `docker run IMAGE ARGUMENTS` has it."""
    flags = line(VLLM, command=("--model", "M"))
    assert not any(word.startswith("--entrypoint") for word in options(flags))
    assert after(flags)[:2] == ["--model", "M"]
    generic = line({"kind": Kind.GENERIC, "image": "tei:1"}, command=("--port", "{port}"))
    assert not any(word.startswith("--entrypoint") for word in options(generic))
    assert after(generic) == ["--port", "18000"]


@pytest.mark.parametrize(
    ("client", "systemd", "words"),
    [
        ("podman", True, ["--cgroups=split", "--env=TOKEN"]),
        ("docker", True, ["--cgroup-parent=gpu-arbiter.slice", "--env=TOKEN"]),
        ("podman", False, ["--env=TOKEN"]),
        ("docker", False, ["--env=TOKEN"]),
    ],
)
def test_the_launcher_says_where_the_cgroup_lies(
    client: str, systemd: bool, words: list[str]
) -> None:
    """Inside the unit (podman), in our slice (docker), anywhere (direct); secrets by name."""
    spec = line(OLLAMA, client)
    whole = completed(spec, systemd=systemd, secrets=("TOKEN",))
    assert list(whole.argv) == [client, "run", *words, *spec.argv[2:]]


def test_a_secret_the_client_reads_itself_is_refused() -> None:
    """It would change the client."""
    with pytest.raises(
        LaunchError, match="env_file sets DOCKER_HOST, which docker itself would read"
    ):
        completed(line(OLLAMA), systemd=True, secrets=("DOCKER_HOST",))


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.30.0", "0.30.0"),
        ("ollama/ollama:0.33.0-rc2", "0.33.0"),
        ("registry:5000/team/ollama:0.33", "0.33"),
        ("tensorflow/serving:2.19.0-gpu@sha256:abc", "2.19.0"),
        ("registry:5000/team/ollama", ""),
        ("ollama/ollama:latest", ""),
        ("ollama/ollama@sha256:0123", ""),
        ("nvcr.io/nvidia/vllm:25.09-py3", "25.09"),
    ],
)
def test_a_version_is_read_from_the_tag(image: str, version: str) -> None:
    """Not from a registry's port, nor from a digest."""
    assert image_version(image) == version


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a:/b", ("/a", "/b", False)),
        ("/a:/b:ro", ("/a", "/b", True)),
        ("models:/m:rw", ("models", "/m", False)),
        ("models", None),
        ("./a:/b", None),
        ("/a:b", None),
        ("/a:/b:Z", None),
    ],
)
def test_a_volume_is_a_source_and_a_target(text: str, wanted: object) -> None:
    """Absolute folders or named volumes."""
    assert volume(text) == wanted


@pytest.mark.parametrize(
    ("client", "engine"),
    [
        (Exit(code=137), Exit(signal=9)),
        (Exit(code=143), Exit(signal=15)),
        (Exit(code=125), Exit(code=125)),
        (Exit(code=0), Exit(code=0)),
        (Exit(code=255), Exit(code=255)),
        (Exit(signal=9), Exit(signal=9)),
        (None, None),
    ],
)
def test_the_clients_exit_tells_the_engines(client: Exit | None, engine: Exit | None) -> None:
    """128 + n is signal n, up to the last signal there is."""
    assert exit_of(client) == engine
