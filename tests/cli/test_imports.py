"""A command imports what it needs: one that only asks the daemon starts quickly."""

import subprocess
import sys

import pytest

from arbiterd.cli import _COMMANDS, _app, _asked, _command

_LOADED = """
import sys
from arbiterd.cli import main
try:
    main({argv!r})
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["status"], ["incidents"], ["why", "x"], ["caps"]])
def test_a_command_that_asks_the_daemon_loads_no_settings_library(argv: list[str]) -> None:
    """Most of a command's time were imports of commands that nobody had asked."""
    run = subprocess.run(
        [sys.executable, "-c", _LOADED.format(argv=["--socket", "/nowhere", *argv])],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = run.stderr.splitlines()[-1].split()
    assert "typer" in loaded
    heavy = {"arbiterd.config", "pydantic_settings", "requests", "psutil", "structlog", "aiohttp"}
    assert not heavy & set(loaded)


@pytest.mark.parametrize("path", _COMMANDS.values(), ids=_COMMANDS)
def test_every_command_of_the_table_is_there(path: str) -> None:
    """The table names modules by strings: each is found, and has words for --help."""
    assert callable(_command(path))
    assert _command(path).__doc__


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
    """--help lists all."""
    names = {command.name for command in _app(None).registered_commands}
    assert names == set(_COMMANDS)
    assert [group.name for group in _app(None).registered_groups] == ["caps"]
