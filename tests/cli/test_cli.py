"""arbiterctl as people use it: exit statuses, messages, JSON, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arbiterd import __version__
from arbiterd.sim.gpu import SimGpu
from tests.config.test_good_files import FIFTEEN
from tests.support import PATIENCE_S
from tests.support.forks import arbiterctl


def _env(**environ: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GPU_ARBITER_")} | environ


def _ctl(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return arbiterctl(argv, _env(**environ), 60)


def _real(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell starts it: one call for each exit status."""
    return subprocess.run(
        [sys.executable, "-m", "arbiterd.cli", *argv],
        env=_env(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A good file with folders of its own."""
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(f'{FIFTEEN}\n[arbiter]\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n')
    return path


def test_a_good_file_is_exit_0(config: Path) -> None:
    """Warnings of this host do not refuse it."""
    done = _real("check", str(config))
    assert done.returncode == 0, done.stderr
    assert f"{config}: good" in done.stdout
    assert "the GPUs cannot be read" in done.stderr


def test_a_bad_file_is_exit_78_with_every_problem(config: Path) -> None:
    """One a line on stderr, and as a list in JSON."""
    config.write_text(config.read_text().replace('"55%"', "55").replace('mode = "A"', 'mode = "X"'))
    done = _real("check", str(config))
    assert done.returncode == 78
    assert len(done.stderr.strip().splitlines()) == 2
    assert f"{config}:10: modes.A.vllm.memory: 55 has no unit" in done.stderr
    found = json.loads(_ctl("check", str(config), "--json").stdout)
    assert found["ok"] is False
    assert [one["line"] for one in found["problems"]] == [1, 10]
    assert {"file", "line", "key", "wrong", "right", "severity"} <= set(found["problems"][0])


def test_options_go_before_or_after_the_command(config: Path) -> None:
    """--json --config FILE check == check --json --config FILE."""
    first = _ctl("--json", "--config", str(config), "check", "--no-host")
    second = _ctl("check", "--no-host", "--json", "--config", str(config))
    assert json.loads(first.stdout) == json.loads(second.stdout) == {"ok": True, "problems": []}


def test_plan_shows_caps_argv_and_arithmetic(
    config: Path, gpu: SimGpu, sim_env: dict[str, str]
) -> None:
    """What a start would do, on the card that is there; a mode that does not fit is exit 78."""
    done = _ctl("--config", str(config), "plan", **sim_env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mode A (shared)" in done.stdout
    assert (
        "--gpu-memory-utilization 0.514 = floor((12.93 GiB cap - 600 MiB context - 265 MiB spikes) / 23.52 GiB)"
        in done.stdout
    )
    assert "fits" in done.stdout
    found = json.loads(_ctl("--config", str(config), "plan", "--json", **sim_env).stdout)
    vllm = next(b for b in found["backends"] if b["name"] == "vllm")
    assert vllm["argv"][-2:] == ["--shutdown-timeout", "30"]
    assert vllm["change"] == "start"
    assert vllm["env"]["CUDA_VISIBLE_DEVICES"] == gpu.uuids()[0]
    other = _ctl("--config", str(config), "plan", "--mode", "B", **sim_env)
    assert other.returncode == 78
    assert "there is no GPU 1 on this host" in other.stdout
    assert _ctl("--config", str(config), "plan", "--mode", "Z", **sim_env).returncode == 1


def test_the_gpu_of_the_active_mode_must_be_there(
    config: Path, gpu: SimGpu, sim_env: dict[str, str]
) -> None:
    """check asks NVML: mode B in force on one card is an error with its line."""
    done = _ctl("check", str(config), **sim_env, GPU_ARBITER_MODE="B")
    assert done.returncode == 78
    assert f"{config}:15: modes.B.vllm.gpu: there is no GPU 1 on this host" in done.stderr
    del gpu


@pytest.mark.parametrize(
    "argv",
    [
        ("status",),
        ("incidents",),
        ("reload",),
        ("drain", "vllm"),
        ("why", "vllm"),
        ("stop-all",),
        ("sleep", "vllm"),
        ("wake", "vllm"),
        ("caps",),
        ("caps", "reset", "vllm"),
    ],
)
def test_without_a_daemon_it_is_exit_69(config: Path, argv: tuple[str, ...]) -> None:
    """One sentence: where it looked and what to do."""
    call = _real if argv == ("status",) else _ctl
    done = call("--config", str(config), *argv)
    assert done.returncode == 69
    assert done.stderr.startswith("arbiterctl: no daemon answers at ")
    assert "systemctl status gpu-arbiter" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ("fly",),
        ("drain",),
        ("caps", "reset"),
        ("check", "--nonsense"),
        ("incidents", "--limit", "x"),
    ],
)
def test_usage_errors_are_exit_2(argv: tuple[str, ...]) -> None:
    """And say how it is used."""
    done = (_real if argv == ("fly",) else _ctl)(*argv)
    assert done.returncode == 2
    assert "Usage" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "check",
        "plan",
        "status",
        "top",
        "incidents",
        "why",
        "reload",
        "drain",
        "resume",
        "restart",
        "sleep",
        "wake",
        "caps",
        "caps reset",
        "stop-all",
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """--help is documentation."""
    done = (_real if command == "status" else _ctl)(*command.split(), "--help")
    assert done.returncode == 0
    assert f"arbiterctl {command}" in done.stdout


def test_a_missing_file_is_a_sentence() -> None:
    """Never a traceback."""
    done = _ctl("check", "/nowhere/x.toml")
    assert done.returncode == 78
    assert "/nowhere/x.toml:1: (file): there is no such file" in done.stderr


def test_a_folder_in_place_of_the_file_is_a_sentence(tmp_path: Path) -> None:
    """Nothing about UTF-8 where there is no text."""
    done = _ctl("check", str(tmp_path))
    assert done.returncode == 78
    assert "cannot be read: it is a folder; name a file" in done.stderr


@pytest.mark.parametrize("module", ["arbiterd", "arbiterd.cli"])
def test_version_is_instant_and_plain(module: str) -> None:
    """No configuration needed."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0
    assert __version__ in done.stdout
