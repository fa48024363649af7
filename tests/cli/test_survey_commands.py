"""init and doctor where neither systemd nor an installation is: a laptop, a container."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from arbiterd.sim.gpu import SimGpu
from tests.support import PATIENCE_S
from tests.support.forks import arbiterctl


def _ctl(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return arbiterctl(argv, env, 60)


@pytest.mark.parametrize("command", ["init", "doctor", "takeover"])
def test_help_has_examples(command: str, sim_env: dict[str, str]) -> None:
    """--help is documentation."""
    done = _ctl(sim_env, command, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert f"arbiterctl {command}" in done.stdout


def test_init_writes_a_file_that_passes_check(
    gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """On the card that is there; the folder of --output need not be /etc."""
    path = tmp_path / "new.toml"
    done = _ctl(sim_env, "init", "--output", str(path))
    assert done.returncode == 0, done.stderr
    assert "GPU 0 NVIDIA GeForce RTX 4090" in done.stdout
    assert "# GPU 0: NVIDIA GeForce RTX 4090, 23.52 GiB" in path.read_text()
    assert tomllib.loads(path.read_text())["mode"] == "A"
    checked = _ctl(sim_env, "check", "--no-host", str(path))
    assert checked.returncode == 0, checked.stderr
    again = _ctl(sim_env, "init", "--output", str(path))
    assert again.returncode == 1
    assert f"{path} is there already" in again.stderr
    del gpu


def test_init_as_json_and_to_stdout(gpu: SimGpu, sim_env: dict[str, str]) -> None:
    """Only the text on stdout; as JSON everything, and nothing is written."""
    shown = _ctl(sim_env, "init", "-o", "-")
    assert tomllib.loads(shown.stdout)["mode"] == "A"
    found = json.loads(_ctl(sim_env, "init", "-o", "-", "--json").stdout)
    assert found["text"] == shown.stdout
    assert found["written"] is None
    assert found["found"]["devices"][0]["index"] == 0
    del gpu


def test_init_where_it_may_not_write_is_a_sentence(sim_env: dict[str, str]) -> None:
    """No traceback."""
    done = _ctl(sim_env, "init", "--output", "/etc", "--force")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("arbiterctl: cannot keep /etc: Is a directory")
    done = _ctl(sim_env, "init", "--output", "/nowhere/x.toml")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "arbiterctl: cannot write /nowhere/x.toml: No such"
    )


def test_doctor_without_a_file_names_init(
    gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """And exit 1: it stands in the way."""
    done = _ctl(sim_env, "--config", str(tmp_path / "none.toml"), "doctor", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    rows = {one["code"]: one for one in found["findings"]}
    assert rows["config"]["mend"] == "arbiterctl init"
    assert found["ok"] is False
    assert "nvml" not in rows
    del gpu


def test_doctor_tells_every_problem_of_a_file(
    gpu: SimGpu, sim_env: dict[str, str], tmp_path: Path
) -> None:
    """With its line; a card that is not there as well; a stranger on the card by its pid."""
    from tests.config.test_good_files import FIFTEEN

    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(
        FIFTEEN.replace('mode = "A"', 'mode = "B"')
        + f'\n[arbiter]\nlauncher = "direct"\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n'
    )
    done = _ctl(sim_env, "doctor", "--json", "--config", str(path))
    found = json.loads(done.stdout)
    what = [one["what"] for one in found["findings"] if one["code"] == "config"]
    assert any("modes.B.vllm.gpu: there is no GPU 1 on this host" in one for one in what)
    missing = [one for one in found["findings"] if one["code"] == "command"]
    assert any("/opt/vllm/bin/vllm is not there" in one["what"] for one in missing)
    assert done.returncode == 1
    shown = _ctl(sim_env, "doctor", "--config", str(path))
    assert f"$ sudoedit {path}" in shown.stdout
    assert "stand in the way" in shown.stdout
    del gpu


def test_takeover_of_something_else_is_usage(sim_env: dict[str, str]) -> None:
    """Exit 2, and what there is."""
    done = _ctl(sim_env, "takeover", "vllm")
    assert done.returncode == 2
    assert "there is: ollama" in done.stderr


def test_shell_completion_knows_the_commands(sim_env: dict[str, str]) -> None:
    """As bash asks for it."""
    env = {
        **sim_env,
        "_ARBITERCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "arbiterctl t",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "arbiterd.cli"],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "takeover" in done.stdout.split()
