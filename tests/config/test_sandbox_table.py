"""``sandbox`` and ``device_wall``: what a file may say, and what each mistake is answered with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.core.backend.planning import launch_spec
from arbiterd.core.mode.intent import digest
from arbiterd.engines.base import LaunchContext
from arbiterd.errors import ConfigRefused
from arbiterd.model.sandbox import SandboxSettings
from arbiterd.model.settings import BackendSettings
from tests.config.test_good_files import FIFTEEN

OLLAMA = 'ollama     = { models = ["qwen2.5:3b"] }'


def _read(tmp_path: Path, keys: str, mode: str = "") -> BackendSettings:
    path = tmp_path / "one.toml"
    text = FIFTEEN.replace(OLLAMA, f'ollama = {{ models = ["qwen2.5:3b"], {keys} }}')
    if mode:
        text = text.replace('memory = "20%" }\n\n', f'memory = "20%", {mode} }}\n\n', 1)
    path.write_text(text)
    return load(path, {}).settings.active.backends["ollama"]


def test_every_list_is_read(tmp_path: Path) -> None:
    """And reaches the launch spec; without the key nothing of it is in the intent."""
    found = _read(
        tmp_path,
        'sandbox = { without = ["RestrictNamespaces", "PrivateTmp"], write = ["/data"],'
        ' devices = ["/dev/infiniband", "char-drm"], syscalls = ["@debug"],'
        ' families = ["AF_PACKET"], capabilities = ["CAP_SYS_NICE"] }',
    )
    expected = SandboxSettings(
        without=("RestrictNamespaces", "PrivateTmp"),
        write=("/data",),
        devices=("/dev/infiniband", "char-drm"),
        syscalls=("@debug",),
        families=("AF_PACKET",),
        capabilities=("CAP_SYS_NICE",),
    )
    assert found.sandbox == expected
    context = LaunchContext(found, (), 0, 0, 0, "127.0.0.1", 1, 0, "/run/x", "i")
    assert launch_spec(context).sandbox == expected
    plain = _read(tmp_path, "priority = 10")
    share = load(tmp_path / "one.toml", {}).settings.active.shares["ollama"]
    assert digest(plain, share) == digest(replace(plain, sandbox=SandboxSettings()), share)
    assert digest(plain, share) != digest(found, share)


def test_a_mode_may_have_its_own(tmp_path: Path) -> None:
    """As with every key of a backend."""
    found = _read(tmp_path, "priority = 10", 'sandbox = { without = ["all"] }')
    assert found.sandbox.without == ("all",)


@pytest.mark.parametrize(
    ("keys", "key", "wrong", "right"),
    [
        ("sandbox = false", "sandbox", "False is no table", '["all"] leaves out all of it'),
        ("sandbox = { namespaces = false }", "sandbox.namespaces", "unknown key", "known: without"),
        ('sandbox = { without = "all" }', "sandbox.without", "is no list", '["all"]'),
        ('sandbox = { without = ["RestrictNamespace"] }', "sandbox.without", "unknown directive", "'RestrictNamespaces'"),
        ('sandbox = { without = ["PrivateDevices"] }', "sandbox.without", "unknown directive", "known: NoNewPrivileges"),
        ('sandbox = { write = ["data"] }', "sandbox.write", "is no absolute path", "in full"),
        ('sandbox = { devices = ["infiniband"] }', "sandbox.devices", "is no device", "/dev/infiniband"),
        ('sandbox = { devices = ["/dev/../etc"] }', "sandbox.devices", "is no device", "/dev/infiniband"),
        ('sandbox = { syscalls = ["ptrace;"] }', "sandbox.syscalls", "is no system call", "@debug"),
        ('sandbox = { families = ["inet"] }', "sandbox.families", "is no address family", "AF_PACKET"),
        ('sandbox = { capabilities = ["CAP_SYS_NICER"] }', "sandbox.capabilities", "unknown capability", "CAP_SYS_NICE"),
        ("sandbox = { write = [5] }", "sandbox.write.0", "5 is not accepted", '"5"'),
        ('device_wall = true, device_id = "index"', "device_id", "has another index", "uuid"),
        ('device_wall = true, sandbox = { without = ["DevicePolicy"] }', "sandbox.without", "of which device_wall is made", "one of the two"),
        ('device_wall = true, image = "ollama/ollama:0.33.0"', "device_wall", "is for plain commands", "docs/containers.md"),
        ('sandbox = { write = ["/x"] }, image = "ollama/ollama:0.33.0"', "sandbox", "is for plain commands", "docs/containers.md"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_would_be_right(
    tmp_path: Path, keys: str, key: str, wrong: str, right: str
) -> None:
    """At its own key."""
    with pytest.raises(ConfigRefused) as refused:
        _read(tmp_path, keys)
    found = [one for one in refused.value.problems if one.key == f"backends.ollama.{key}"]
    assert found, refused.value.problems
    assert wrong in found[0].wrong
    assert right in found[0].right


def test_it_is_told_that_the_direct_launcher_has_no_sandbox(tmp_path: Path) -> None:
    """A warning: the file starts."""
    path = tmp_path / "one.toml"
    text = FIFTEEN.replace(OLLAMA, 'ollama = { models = ["qwen2.5:3b"], device_wall = true }')
    path.write_text(text + '\n[arbiter]\nlauncher = "direct"\n')
    told = [one for one in load(path, {}).warnings if one.key == "backends.ollama.device_wall"]
    assert "does nothing under the direct launcher" in told[0].wrong
