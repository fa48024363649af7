"""A command imports what it needs: one that only asks the daemon starts quickly."""

import inspect
import os
import subprocess
import sys

import pytest

from arbiterd.cli import COMMANDS, _asked, command_of
from arbiterd.cli.app import app_of

_LOADED = """
import sys
from arbiterd.cli import main
try:
    main({argv!r})
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


def _loaded(*argv: str, **environ: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules that it has loaded at its end."""
    run = subprocess.run(
        [sys.executable, "-c", _LOADED.format(argv=list(argv))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environ},
    )
    return run.stdout, set(run.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("argv", [["incidents"], ["why", "x"], ["caps"]])
def test_a_command_that_asks_the_daemon_loads_no_settings_library(argv: list[str]) -> None:
    """Most of a command's time were imports of commands that nobody had asked."""
    _, loaded = _loaded("--socket", "/nowhere", *argv)
    assert "typer" in loaded
    heavy = {"arbiterd.config", "pydantic_settings", "requests", "psutil", "structlog", "aiohttp"}
    assert not {*heavy, "http.client"} & loaded


@pytest.mark.parametrize("argv", [["status"], ["status", "--json"], ["--socket=/x", "status"]])
def test_status_loads_no_typer(argv: list[str]) -> None:
    """It is the command that scripts and people repeat; it has no options of its own."""
    _, loaded = _loaded("--socket", "/nowhere", *argv)
    assert "arbiterd.cli.show" in loaded
    assert not {"typer", "pydantic", "http.client", "ssl", "arbiterd.cli.mode"} & loaded


def test_status_has_help_all_the_same() -> None:
    """With anything that is not a global option, typer is asked."""
    said, loaded = _loaded("status", "--help")
    assert "Show mode, GPUs with their ledgers" in said
    assert "typer" in loaded


def test_help_imports_no_command() -> None:
    """All of them take half a second; their summaries stand in the table."""
    said, loaded = _loaded("--help")
    assert "stop-post" in said
    assert not {"arbiterd.cli.show", "arbiterd.cli.check"} & loaded


@pytest.mark.parametrize(
    ("words", "names"),
    [("st", ["status", "stop-all", "stop-post"]), ("", list(COMMANDS)), ("nothing", [])],
)
def test_bash_completes_the_names_of_commands_at_once(words: str, names: list[str]) -> None:
    """Neither typer nor a command is imported."""
    line = {"COMP_WORDS": f"arbiterctl {words}", "COMP_CWORD": "1"}
    said, loaded = _loaded(_ARBITERCTL_COMPLETE="complete_bash", **line)
    assert said.split() == names
    assert not {"typer", "arbiterd.cli.show"} & loaded


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_options_of_a_command_are_completed_by_importing_it_alone(shell: str) -> None:
    """typer's answer, in each shell's form."""
    words = "arbiterctl reload --wa"
    line = {"COMP_WORDS": words, "COMP_CWORD": "2"} if shell == "bash" else {}
    more = {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    line |= {} if shell == "bash" else more
    said, loaded = _loaded(_ARBITERCTL_COMPLETE=f"complete_{shell}", **line)
    assert "--wait" in said
    assert "arbiterd.cli.operate" in loaded
    assert "arbiterd.cli.check" not in loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    """The table names modules by strings and repeats the first line of --help: both are right."""
    path, summary = COMMANDS[name]
    assert (inspect.getdoc(command_of(path)) or "").splitlines()[0] == summary


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["status"], "status"),
        (["--json", "--config", "status", "why", "x"], "why"),
        (["--config=plan", "caps", "reset", "x"], "caps"),
        (["--socket", "/x"], None),
        (["--help"], None),
        (["statsu"], None),  # all are loaded, so that the nearest can be named
        ([], None),
    ],
)
def test_the_asked_command_is_found_behind_the_global_options(
    words: list[str], asked: str | None
) -> None:
    """Their values are not taken for a command."""
    assert _asked(words) == asked


def test_without_a_name_every_command_is_offered() -> None:
    """--help lists all, in the order of the table."""
    assert [command.name for command in app_of(None).registered_commands] == list(COMMANDS)
