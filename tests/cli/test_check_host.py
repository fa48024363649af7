"""What ``check`` says of the host and of a file that cannot be read: each at its line."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.cli.test_cli import _ctl
from tests.support import free_port

FILE = """mode = "A"
[arbiter]
launcher = "direct"
runtime_dir = "{folder}/run"
state_dir = "{folder}/state"
listen = "127.0.0.1:{listen}"
[gateway]
llm_port = 0
[backends.x]
kind = "generic"
command = ["/no/such/program"]
health = "/"
port = {port}
[modes.A]
x = {{ gpu = "cpu" }}
"""


def test_a_taken_port_and_a_missing_command_have_their_lines(tmp_path: Path) -> None:
    """By whom it is taken, and the command that frees it."""
    path = tmp_path / "f.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        path.write_text(FILE.format(folder=tmp_path, port=port, listen=free_port()))
        done = _ctl("check", str(path))
    assert done.returncode == 0, done.stderr
    assert (
        f"warning: {path}:13: backends.x.port: port {port} is taken by pid {os.getpid()}"
        in done.stderr
    )
    assert f"kill {os.getpid()}, or write another port" in done.stderr or ".service" in done.stderr
    assert f"warning: {path}:11: backends.x.command: /no/such/program is not there" in done.stderr


@pytest.mark.parametrize(
    ("make", "says", "next_"),
    [
        (lambda path: None, "there is no such file", "init"),
        (lambda path: path.mkdir(), "it is a folder", "--config"),
        (
            lambda path: path.write_bytes(b"mode = \xe9"),
            "is not UTF-8: byte 8 is 0xe9",
            "iconv -f latin1",
        ),
        (lambda path: path.write_bytes(b"\xef\xbb\xbfmode = 1"), "byte order mark", "sed -i"),
    ],
    ids=["missing", "folder", "latin1", "bom"],
)
@pytest.mark.parametrize("command", ["check", "status"])
def test_a_config_that_cannot_be_read_is_said_as_that(
    tmp_path: Path, make: object, says: str, next_: str, command: str
) -> None:
    """Whatever the command: not that no daemon answers. With the next command to type."""
    path = tmp_path / "x.toml"
    make(path)  # type: ignore[operator]
    done = _ctl("--config", str(path), command)
    assert done.returncode == 78, done.stderr
    assert says in done.stderr
    assert next_ in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_one_problem_is_one_line_whatever_is_in_a_key(tmp_path: Path) -> None:
    """Newlines, escapes and line separators are written out."""
    path = tmp_path / "f.toml"
    path.write_text(
        'mode = "A\\u2028B"\n"a\\nb" = 1\n[backends]\n"x\\u001b[31m\\ny" = { kind = "ollama" }\n[modes.A]\n'
    )
    done = _ctl("check", str(path))
    assert done.returncode == 78
    for line in done.stderr.splitlines():
        assert line.removeprefix("warning: ").startswith(str(path)), done.stderr
    assert "a\\nb" in done.stderr
    assert f"{path}:2:" in done.stderr
    assert "\x1b" not in done.stderr


def test_models_of_several_backends_are_named_with_how_one_is_chosen(tmp_path: Path) -> None:
    """Two vLLMs with one model: their names and the door that chooses; a model of one's own is no note."""
    path = tmp_path / "f.toml"
    one = (
        '[backends.{name}]\nkind = "vllm"\ncommand = ["vllm", "serve", "{model}"]\nport = {port}\n'
    )
    names = (("a", "org/M"), ("b", "org/M"), ("c", "org/N"))
    modes = "".join(f'{name} = {{ gpu = "cpu" }}\n' for name, _ in names)
    path.write_text(
        f'mode = "A"\n[arbiter]\nlauncher = "direct"\nruntime_dir = "{tmp_path}/run"\n'
        f'state_dir = "{tmp_path}/state"\nlisten = "127.0.0.1:{free_port()}"\n'
        "[gateway]\nllm_port = 8080\n"
        + "".join(one.format(name=n, model=m, port=free_port()) for n, m in names)
        + f"[modes.A]\n{modes}"
    )
    done = _ctl("check", str(path))
    said = [line for line in done.stdout.splitlines() if "free slots" in line]
    assert said == [
        "note: org/M is served by a and b: port 8080 takes the one with the most free slots"
    ], done.stdout + done.stderr


def keyed(tmp_path: Path, gateway: str = "", **keys: str) -> list[str]:
    """Warnings about keys: two vLLMs with one model, ``keys``: name → VLLM_API_KEY; c has answered 401."""
    path, state = tmp_path / "f.toml", tmp_path / "state"
    state.mkdir()
    (state / "keyed.json").write_text('["c", "gone"]')
    (tmp_path / "doors").write_text("sk-doors\n")
    (tmp_path / "doors").chmod(0o600)
    text = f'mode = "A"\n[arbiter]\nlauncher = "direct"\nruntime_dir = "{tmp_path}/run"\nstate_dir = "{state}"\n'
    text += f'listen = "127.0.0.1:{free_port()}"\n[gateway]\nllm_port = 0\n{gateway}'
    for name, model in (("a", "org/M"), ("b", "org/M"), ("c", "org/N")):
        file = tmp_path / f"{name}.env"
        file.write_text(f"VLLM_API_KEY={keys[name]}\n" if name in keys else "")
        text += (
            f'[backends.{name}]\nkind = "vllm"\ncommand = ["vllm", "serve", "{model}"]\n'
            f'port = {free_port()}\nenv_file = "{file}"\n'
        )
    path.write_text(text + "[modes.A]\n" + "".join(f'{n} = {{ gpu = "cpu" }}\n' for n in "abc"))
    said = _ctl("check", str(path)).stderr
    assert not any(key in said for key in keys.values())
    return [line for line in said.splitlines() if "take different keys" in line or "401" in line]


def test_keys_that_differ_and_a_key_that_is_not_known_are_warned_of(tmp_path: Path) -> None:
    """A client's key opens one of two that share a model; what has answered 401 is known over restarts."""
    found = keyed(tmp_path, a="sk-of-a-123", b="sk-of-b-456")
    assert len(found) == 2, found
    (unknown,) = [line for line in found if "backends.c.env_file" in line]
    assert "it has answered 401, and its key is not known here: no substitute answers" in unknown
    assert "as VLLM_API_KEY" in unknown
    (differ,) = [line for line in found if "backends.b.env_file" in line]
    assert "a and b take different keys, and both serve org/M" in differ


def test_with_keys_of_its_own_a_door_sends_each_engine_its_key(tmp_path: Path) -> None:
    """Different keys are no trouble then; an unknown one shuts its engine for everybody."""
    found = keyed(tmp_path, f'key_file = "{tmp_path}/doors"\n', a="sk-of-a-123", b="sk-of-b-456")
    assert len(found) == 1, found
    assert "every client of its door gets 401" in found[0]
