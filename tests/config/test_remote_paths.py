"""TensorFlow models on another host: named wherever they stand, since its unit reaches loopback only."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import load

CONFIG = """\
mode = "A"
{head}
[backends.tensorflow]
command = ["tensorflow_model_server", {words}]
models = ["m"]
[modes.A]
tensorflow = {{ gpu = 0 }}
"""


def _told(folder: Path, words: str, head: str = "") -> list[str]:
    path = folder / "a.toml"
    path.write_text(CONFIG.format(words=words, head=head))
    return [str(one) for one in load(path, {}).warnings if "reaches loopback only" in str(one)]


@pytest.mark.parametrize(
    "path", ["s3://bucket/m", "gs://bucket/m", "hdfs://name:9000/m", "https://host/m", "S3://B/m"]
)
def test_a_remote_path_is_a_warning(tmp_path: Path, path: str) -> None:
    """In a flag, after a flag, and in the model configuration file."""
    (found,) = _told(tmp_path, f'"--model_name=m", "--model_base_path={path}"')
    assert path in found
    assert "backends.tensorflow.command: --model_base_path is" in found
    file = tmp_path / "models.config"
    file.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{path}" }} }}\n')
    (found,) = _told(tmp_path, f'"--model_config_file={file}"')
    assert f"base_path in {file} is {path}," in found


def test_local_paths_and_hosts_without_the_wall_are_none(tmp_path: Path) -> None:
    """file:// is this host's; the direct launcher and a host without doors have no IPAddressDeny=."""
    assert not _told(tmp_path, '"--model_base_path=/srv/m"')
    assert not _told(tmp_path, '"--model_base_path=file:///srv/m"')
    assert not _told(tmp_path, '"--model_config_file=/dev/zero"')
    remote = '"--model_base_path=s3://b/m"'
    assert not _told(tmp_path, remote, '[arbiter]\nlauncher = "direct"\n')
    assert not _told(tmp_path, remote, "[gateway]\nenabled = false\n")
