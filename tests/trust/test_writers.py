"""Who could change what root runs or reads: by every name on the way, links followed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.engines.tf_canary import NoCanary
from arbiterd.files import trust
from arbiterd.files.trust import only_root_writes, tool, weak
from arbiterd.sense import canaries
from arbiterd.sense.http import session
from arbiterd.survey.writers import writable
from tests.core.world import only

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
NOBODY = 65534
ME = {0, os.geteuid()}
CONFIG = """\
mode = "A"
[arbiter]
listen = "127.0.0.1:{port}"
launcher = "direct"
state_dir = "{home}/state"
runtime_dir = "{home}/run"
[backends.ollama]
command = ["{home}/bin/ollama", "serve"]
models = ["qwen2.5:3b"]
env = {{ OLLAMA_MODELS = "{home}/store" }}
env_file = "{home}/etc/ollama.env"
[backends.tf]
kind = "tensorflow-serving"
command = ["{home}/bin/tf", "--ssl_config_file={home}/etc/ssl.config"]
models = {{ resnet = "{home}/models/resnet" }}
canary = "{home}/etc/canary.json"
[modes.A]
ollama = {{ gpu = 0, memory = "30%" }}
tf = {{ gpu = 0, memory = "30%" }}
"""
FILES = (
    "bin/ollama",
    "bin/tf",
    "etc/ollama.env",
    "etc/ssl.config",
    "etc/canary.json",
    "models/resnet/1/saved_model.pb",
    "store/blobs/x",
    "state/x",
    "run/x",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Everything that the configuration names, nobody else's."""
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_text("{}" if name.endswith("json") else "")
        path.chmod(0o755 if name.startswith("bin") else 0o644)
    (tmp_path / "gpu-arbiter.toml").write_text(CONFIG.format(home=tmp_path, port=9480))
    return tmp_path


def _said(home: Path) -> dict[str, str]:
    path = home / "gpu-arbiter.toml"
    loaded = load(path, {})
    found = writable(loaded.text, loaded.settings, direct=True)
    prefix = str(home)
    return {
        one.watched.path.removeprefix(f"{prefix}/"): f"{one.who}; {one.mend}"
        for one in found
        if one.watched.path.startswith(prefix)
    }


def test_what_nobody_else_can_write_is_not_named(home: Path) -> None:
    """A sticky folder above (/tmp) is none that others can replace things in."""
    assert _said(home) == {}


@pytest.mark.parametrize(
    "name",
    ["bin/ollama", "bin/tf", "etc/ollama.env", "etc/ssl.config", "etc/canary.json", "state", "run",
     "models/resnet", "store", "gpu-arbiter.toml"],
)  # fmt: skip
@pytest.mark.parametrize(("mode", "who"), [(0o020, "group"), (0o002, "every user")])
def test_what_others_may_write_is_named(home: Path, name: str, mode: int, who: str) -> None:
    """Whatever its key is called: the path, who, and the command that closes it."""
    path = home / name
    path.chmod(path.stat().st_mode | mode)
    said = _said(home)
    assert list(said) == [name]
    assert said[name].startswith(who)
    assert f"chmod g{'' if mode == 0o020 else 'o'}-w {path}" in said[name]


def test_a_folder_above_counts_as_the_file_itself(home: Path) -> None:
    """Who may write to it puts another file under the name."""
    (home / "bin").chmod(0o777)
    assert set(_said(home)) == {"bin/ollama", "bin/tf"}
    (home / "bin").chmod(0o755)
    home.chmod(0o770)
    assert len(_said(home)) == 10


def test_links_are_followed_to_where_they_lead(home: Path) -> None:
    """The link's folder, the target, and the folders above the target all count."""
    (home / "open").mkdir()
    (home / "open" / "real").write_text("")
    (home / "open" / "real").chmod(0o755)
    (home / "open").chmod(0o777)
    (home / "bin" / "ollama").unlink()
    (home / "bin" / "ollama").symlink_to("../bin/../open/real")
    assert f"every user ({home}/open)" in _said(home)["bin/ollama"]
    (home / "loop").symlink_to(home / "loop")
    assert weak(str(home / "loop" / "x"), ME) == ()


def test_the_interpreter_of_a_script_counts(home: Path) -> None:
    """It is what runs."""
    used = home / "lib" / "python"
    used.parent.mkdir()
    used.write_text("")
    used.chmod(0o777)
    (home / "bin" / "ollama").write_text(f"#!{used}\n")
    assert list(_said(home)) == ["lib/python"]


@AS_ROOT
def test_another_owner_is_named(home: Path) -> None:
    """The engine's own user counts for programs and keys; where models lie it may write."""
    for name in ("bin/ollama", "etc", "store", "models/resnet"):
        os.chown(home / name, NOBODY, NOBODY)
    said = _said(home)
    assert set(said) >= {"bin/ollama", "etc/ollama.env", "store", "models/resnet"}
    assert "user nobody" in said["bin/ollama"]
    assert f"chown root: {home}/bin/ollama" in said["bin/ollama"]
    text = (home / "gpu-arbiter.toml").read_text()
    text = text.replace("[backends.ollama]\n", '[backends.ollama]\nuser = "nobody"\n')
    text = text.replace("[backends.tf]\n", '[backends.tf]\nuser = "nobody"\n')
    (home / "gpu-arbiter.toml").write_text(text)
    assert "bin/ollama" in _said(home)
    loaded = load(home / "gpu-arbiter.toml", {})
    assert not any(one.by_root for one in writable(loaded.text, loaded.settings, direct=True))
    (home / "gpu-arbiter.toml").write_text(text.replace('user = "nobody"', 'user = "root"'))
    loaded = load(home / "gpu-arbiter.toml", {})
    found = writable(loaded.text, loaded.settings, direct=False)
    told = [one.words for one in found if one.by_root and "bin/ollama" in one.words]
    assert told[0].endswith("bin/ollama), and its engine runs as root")
    (home / "gpu-arbiter.toml").write_text(text)
    assert not {"store", "models/resnet"} & set(_said(home))


@AS_ROOT
def test_a_home_is_not_taken_away(home: Path) -> None:
    """A program in a person's home: advice to keep it elsewhere, no chown of the home."""
    os.chown(home, NOBODY, NOBODY)
    assert all(
        "keep it in a folder that only root may write" in one for one in _said(home).values()
    )


@AS_ROOT
def test_root_runs_only_what_nobody_else_can_change(tmp_path: Path) -> None:
    """The program, the folders above it, the interpreter of a script; and never by the caller's PATH."""
    path = tmp_path / "bin" / "thing"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    assert only_root_writes(str(path))
    assert tool("thing", f"/nowhere:{path.parent}") == str(path)
    for spoiled, mode in ((path, 0o775), (path.parent, 0o757)):
        kept = spoiled.stat().st_mode
        spoiled.chmod(mode)
        assert tool("thing", str(path.parent)) is None
        spoiled.chmod(kept)
    other = tmp_path / "python"
    other.write_text("")
    other.chmod(0o755)
    os.chown(other, NOBODY, NOBODY)
    path.write_text(f"#!{other}\n")
    assert tool("thing", str(path.parent)) is None
    os.environ["PATH"] = f"{path.parent}:{os.environ['PATH']}"
    try:
        assert tool("thing") is None
    finally:
        os.environ["PATH"] = os.environ["PATH"].partition(":")[2]


@AS_ROOT
def test_a_tool_of_roots_gets_no_home_of_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo` may keep HOME, and docker runs plugins that lie in it."""
    for name in ("HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "LD_PRELOAD"):
        monkeypatch.setenv(name, "/mnt/alice")
    assert "/mnt/alice" not in trust.environ().values()


def test_children_load_no_module_from_the_folder_that_we_stand_in(tmp_path: Path) -> None:
    """`python -m` puts it in front of the path: another user's json.py would run as root there."""
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "arbiterd").mkdir()
    code = (
        "import os\n"
        "from arbiterd.survey import access, checkup\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "import pwd\n"
        "print(access.obstacles(pwd.getpwuid(os.geteuid()).pw_name, [('/', 'x')]))\n"
        "print(checkup._persistence())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith("[None]"), done.stderr
    assert not (tmp_path / "ran").exists()


@AS_ROOT
def test_a_library_path_that_others_can_write_reaches_no_child_of_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libnvidia-ml.so.1 is looked for there by the NVML worker."""
    open_, ours = tmp_path / "open", tmp_path / "ours"
    for folder, mode in ((open_, 0o777), (ours, 0o755)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setenv("LD_PRELOAD", str(open_ / "x.so"))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{open_}::relative:{ours}")
    found = trust.own_environ()
    assert (found["LD_LIBRARY_PATH"], "LD_PRELOAD" in found) == (str(ours), False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(open_))
    assert "LD_LIBRARY_PATH" not in trust.own_environ()


@AS_ROOT
def test_no_file_of_roots_is_sent_to_an_engine_as_a_canary(tmp_path: Path) -> None:
    """The canary's path leads through a folder of the engine's user, who puts a link there."""
    secret, link = tmp_path / "secret", tmp_path / "open" / "canary.json"
    secret.write_text('{"a": 1}')
    secret.chmod(0o600)
    link.parent.mkdir()
    link.symlink_to(secret)
    one = replace(only("tensorflow").active.backends["tensorflow"], canary=str(link))
    model = one.models[0]
    assert canaries._body(session(), one, "", model) == '{"a": 1}'
    os.chown(link.parent, NOBODY, NOBODY)
    with pytest.raises(NoCanary, match="others can change what it is"):
        canaries._body(session(), one, "", model)
    secret.chmod(0o644)
    assert canaries._body(session(), one, "", model) == '{"a": 1}'
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(NoCanary, match="no file"):
        canaries._body(session(), one, "", model)
