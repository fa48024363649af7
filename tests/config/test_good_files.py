"""Files that are accepted, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import check_devices, load
from arbiterd.config_file import default_path
from arbiterd.model.devices import Device
from arbiterd.model.settings import FOR_EVER_S, GpuRef, Kind, Settings
from arbiterd.quantities import GIB, MIB

FIFTEEN = """\
mode = "A"

[backends]
tensorflow = { command = ["tensorflow_model_server"], models = { resnet50 = "/srv/models/resnet50" } }
vllm       = { command = ["/opt/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-3B-Instruct"] }
ollama     = { models = ["qwen2.5:3b"] }

[modes.A]
tensorflow = { gpu = 0, memory = "20%" }
vllm       = { gpu = 0, memory = "55%" }
ollama     = { gpu = 0, memory = "20%" }

[modes.B]
tensorflow = { gpu = 0 }
vllm       = { gpu = 1, memory = "75%", max_model_len = 8192 }
ollama     = { gpu = 1, memory = "20%" }
"""


def _load(tmp_path: Path, text: str = FIFTEEN, **environ: str) -> Settings:
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(text)
    return load(path, environ).settings


def test_fifteen_lines_are_enough(tmp_path: Path) -> None:
    """Everything else has the contract's default."""
    settings = _load(tmp_path)
    tensorflow, vllm, ollama = (
        settings.active.backends[n] for n in ("tensorflow", "vllm", "ollama")
    )
    assert (tensorflow.kind, tensorflow.port, tensorflow.grpc_port) == (Kind.TENSORFLOW, 8501, 8500)
    assert (vllm.port, vllm.engine_port, vllm.priority) == (8000, 18000, 30)
    assert (ollama.port, ollama.command) == (11434, ("ollama", "serve"))
    assert [b.priority for b in (tensorflow, ollama)] == [20, 10]
    assert [b.start_timeout_s for b in (vllm, tensorflow, ollama)] == [1200, 300, 120]
    assert [b.stuck_after_s for b in (vllm, tensorflow, ollama)] == [30, 60, 60]
    assert (tensorflow.request_timeout_s, vllm.request_timeout_s) == (30, 900)
    assert settings.arbiter.poll_s == 0.25
    assert settings.foreign_allow_bytes == 512 * MIB
    assert settings.gateway.enabled


def test_names_and_origins_are_taken_as_they_are_sent(tmp_path: Path) -> None:
    """Lower case, IDNA, no final dot or slash; a star where it says something."""
    text = """
[gateway]
hosts = ["LLM.Example.com.", "*.lab.example", "bücher.example", "192.0.2.1", "*"]
cors = ["https://App.example.com/", "https://*.example.com:*", "chrome-extension://*", "*"]
max_body = "1GiB"
trusted_proxies = ["192.0.2.10", "10.1.2.3/16", "2001:db8::/32"]
"""
    gateway = _load(tmp_path, FIFTEEN + text).gateway
    assert gateway.hosts == (
        "llm.example.com",
        "*.lab.example",
        "xn--bcher-kva.example",
        "192.0.2.1",
        "*",
    )
    assert gateway.cors == (
        "https://app.example.com",
        "https://*.example.com:*",
        "chrome-extension://*",
        "*",
    )
    assert gateway.max_body_bytes == 1024 * MIB
    assert gateway.trusted_proxies == ("192.0.2.10/32", "10.1.0.0/16", "2001:db8::/32")
    plain = _load(tmp_path).gateway
    assert (plain.hosts, plain.cors, plain.max_body_bytes) == ((), (), 32 * MIB)


def test_a_mode_may_override_any_key(tmp_path: Path) -> None:
    """max_model_len of mode B is not in force in mode A."""
    settings = _load(tmp_path)
    assert settings.modes["A"].backends["vllm"].vllm.max_model_len is None
    assert settings.modes["B"].backends["vllm"].vllm.max_model_len == 8192


def test_the_shortest_share_is_a_percentage(tmp_path: Path) -> None:
    """`vllm = "55%"` takes the host's only GPU."""
    text = FIFTEEN.replace('vllm       = { gpu = 0, memory = "55%" }', 'vllm = "55%"')
    share = _load(tmp_path, text).active.shares["vllm"]
    assert (share.gpus, share.fraction) == ((), 0.55)


@pytest.mark.parametrize(
    ("written", "refs", "cpu"),
    [
        ("3", (GpuRef("index", "3"),), False),
        ('"GPU-0a1b"', (GpuRef("uuid", "GPU-0a1b"),), False),
        ('"MIG-0a1b"', (GpuRef("mig", "MIG-0a1b"),), False),
        ("[2, 3]", (GpuRef("index", "2"), GpuRef("index", "3")), False),
        ('"cpu"', (), True),
    ],
)
def test_a_gpu_has_five_forms(
    tmp_path: Path, written: str, refs: tuple[GpuRef, ...], cpu: bool
) -> None:
    """Index, uuid, MIG uuid, a list of these, cpu."""
    text = FIFTEEN.replace("tensorflow = { gpu = 0 }", f"tensorflow = {{ gpu = {written} }}")
    share = _load(tmp_path, text).modes["B"].shares["tensorflow"]
    assert (share.gpus, share.cpu) == (refs, cpu)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ('"10m"', 600),
        ('"24h"', 86400),
        ('"1h30m"', 5400),
        ('"90s"', 90),
        ('"500ms"', 0.5),
        ('"5min"', 300),
        ('"1.5h"', 5400),
        ('"1h 30min 5s"', 5405),
        ('"2d"', 172800),
    ],
)
def test_durations_are_read_as_people_and_engines_write_them(
    tmp_path: Path, written: str, seconds: float
) -> None:
    """``m`` and ``min`` are minutes for every key, Ollama's keep_alive included."""
    text = FIFTEEN.replace('"qwen2.5:3b"] }', f'"qwen2.5:3b"], keep_alive = {written} }}')
    text += f"[gateway]\nrequest_timeout = {written}\n"
    ollama = _load(tmp_path, text).active.backends["ollama"]
    assert ollama.ollama.keep_alive_s == pytest.approx(seconds)
    assert ollama.request_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("written", ['"-1"', "-1", '"-1s"', '"-10m"'])
def test_a_negative_keep_alive_is_for_ever(tmp_path: Path, written: str) -> None:
    """Ollama gets -1; the gate has a finite number to compare with."""
    text = FIFTEEN.replace('"qwen2.5:3b"] }', f'"qwen2.5:3b"], keep_alive = {written} }}')
    assert _load(tmp_path, text).active.backends["ollama"].ollama.keep_alive_s == FOR_EVER_S


@pytest.mark.parametrize(
    ("written", "seconds"), [('"300"', 300), ("300", 300), ("0", 0), ('"0"', 0)]
)
def test_a_bare_keep_alive_is_seconds_as_for_ollama(
    tmp_path: Path, written: str, seconds: float
) -> None:
    """Only this key: every other duration needs its unit."""
    text = FIFTEEN.replace('"qwen2.5:3b"] }', f'"qwen2.5:3b"], keep_alive = {written} }}')
    assert _load(tmp_path, text).active.backends["ollama"].ollama.keep_alive_s == seconds


def test_partitioned_may_be_asserted_where_more_than_one_device_is_named(tmp_path: Path) -> None:
    """Mode B of the README: vLLM and Ollama share GPU 1, TensorFlow has GPU 0."""
    text = FIFTEEN.replace("[modes.B]\n", '[modes.B]\nsharing = "partitioned"\n')
    assert _load(tmp_path, text).modes["B"].sharing == "partitioned"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """Any key, nested by __, spelled without case."""
    settings = _load(
        tmp_path,
        GPU_ARBITER_MODE="B",
        GPU_ARBITER_ARBITER__POLL="1s",
        GPU_ARBITER_BACKENDS__VLLM__PORT="8009",
        GPU_ARBITER_MODES__A__VLLM__MEMORY="50%",
    )
    assert settings.mode == "B"
    assert settings.source.mode_from_env
    assert settings.arbiter.poll_s == 1.0
    assert settings.active.backends["vllm"].port == 8009
    assert settings.modes["A"].shares["vllm"].fraction == 0.5


def test_a_mistyped_variable_is_a_warning(tmp_path: Path) -> None:
    """It would be ignored silently otherwise."""
    path = tmp_path / "f.toml"
    path.write_text(FIFTEEN)
    warnings = load(path, {"GPU_ARBITER_ARBITR__POLL": "1s"}).warnings
    assert "did you mean 'arbiter'?" in str(warnings[0])


def test_the_variable_that_names_the_file_is_no_key() -> None:
    """GPU_ARBITER_CONFIG, else /etc/gpu-arbiter.toml."""
    assert default_path({"GPU_ARBITER_CONFIG": "/x.toml"}) == Path("/x.toml")
    assert default_path({}) == Path("/etc/gpu-arbiter.toml")


def _card(index: int = 0, total: int = 24 * GIB) -> Device:
    return Device(f"GPU-{index}", index, "NVIDIA GeForce RTX 4090", f"0{index}", total, 482 * MIB)


def test_hardware_binds_the_active_mode_and_warns_of_others(tmp_path: Path) -> None:
    """Mode B needs a second GPU: a warning while A is in force, an error when B is."""
    path = tmp_path / "f.toml"
    path.write_text(FIFTEEN)
    one = [_card()]
    assert {p.severity for p in check_devices(load(path, {}), one)} == {"warning"}
    found = check_devices(load(path, {"GPU_ARBITER_MODE": "B"}), one)
    errors = [p for p in found if p.severity == "error"]
    assert [p.key for p in errors] == ["modes.B.vllm.gpu", "modes.B.ollama.gpu"]
    assert "there is no GPU 1 on this host" in errors[0].wrong
    assert errors[0].line == 15
    assert not check_devices(load(path, {}), [_card(), _card(1)])


def test_caps_and_headroom_must_fit_the_card(tmp_path: Path) -> None:
    """The sum is shown, and by how much it is too large."""
    path = tmp_path / "f.toml"
    path.write_text(
        FIFTEEN.replace(
            'vllm       = { gpu = 0, memory = "55%" }', 'vllm = { gpu = 0, memory = "14GiB" }'
        )
    )
    found = [p for p in check_devices(load(path, {}), [_card()]) if p.severity == "error"]
    assert len(found) == 1
    assert "headroom" in found[0].wrong
    assert "more than" in found[0].wrong
    assert found[0].key == "modes.A.ollama.memory"


def test_a_cap_under_vllms_own_overhead_is_refused(tmp_path: Path) -> None:
    """1 GiB does not even hold its CUDA context and spikes with anything left."""
    path = tmp_path / "f.toml"
    path.write_text(FIFTEEN.replace('memory = "55%"', 'memory = "800MiB"'))
    found = check_devices(load(path, {}), [_card(), _card(1)])
    assert any("does not hold vLLM's CUDA context" in p.wrong for p in found)


def test_the_shipped_files_are_good(tmp_path: Path) -> None:
    """etc/gpu-arbiter.toml as it is."""
    shipped = Path(__file__).resolve().parents[2] / "etc" / "gpu-arbiter.toml"
    loaded = load(shipped, {})
    assert loaded.warnings == ()
    assert set(loaded.settings.modes) == {"A", "B"}
