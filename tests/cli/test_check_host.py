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
