"""What others rely on does not change unsaid: config keys, the API's documents, metrics, events, exit statuses.

A golden file has one line a key, as it was promised last. A line that is new, gone or other fails, unless
CHANGELOG's Unreleased section has its key in backquotes: then users are told, and the file may follow:

    python -m tests.golden
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from arbiterd import __main__ as daemon
from arbiterd import cli
from tests.golden.reference import DOCS, page, reference
from tests.golden.surfaces import SURFACES, lines

FOLDER = Path(__file__).parent
CHANGELOG = FOLDER.parents[1] / "CHANGELOG.md"


def unreleased(text: str) -> set[str]:
    """What stands in backquotes in the section of what is not released yet."""
    section = text.partition("\n## Unreleased\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`([^`]+)`", section))


def unsaid(golden: list[str], now: list[str], said: set[str]) -> list[str]:
    """Lines that differ and whose key CHANGELOG does not name."""
    rows = [("- ", line) for line in golden if line not in now]
    rows += [("+ ", line) for line in now if line not in golden]
    rows.sort(key=lambda row: (row[1].partition(": ")[0], row[0]))
    return [sign + line for sign, line in rows if line.partition(": ")[0] not in said]


@pytest.mark.parametrize("surface", SURFACES)
def test_a_change_of_what_others_rely_on_is_in_the_changelog(surface: str) -> None:
    """Each line of the golden file, or its key in CHANGELOG."""
    golden = (FOLDER / f"{surface}.txt").read_text(encoding="utf-8").splitlines()
    found = unsaid(golden, lines(surface), unreleased(CHANGELOG.read_text(encoding="utf-8")))
    keys = ", ".join(dict.fromkeys(f"`{row[2:].partition(': ')[0]}`" for row in found))
    told = "\n".join(found)
    assert not found, (
        f"tests/golden/{surface}.txt differs:\n{told}\nName in CHANGELOG.md, section Unreleased, with what users "
        f"have to do: {keys}\nThen: python -m tests.golden"
    )


def test_the_reference_in_the_docs_is_that_of_the_settings() -> None:
    """Keys, defaults and meanings stand once, in the settings' metadata."""
    assert DOCS.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.golden"
    tomllib.loads(reference().replace("[backends.NAME]", "[backends.every]", 1))


def test_only_a_named_key_may_change() -> None:
    """New, gone or of another type; a key that is part of another one is not named by it."""
    golden, now = (
        ["arbiter.log: text", "arbiter.poll: size"],
        ["arbiter.poll: duration", "arbiter.new: text"],
    )
    every = [
        "- arbiter.log: text",
        "+ arbiter.new: text",
        "+ arbiter.poll: duration",
        "- arbiter.poll: size",
    ]
    assert unsaid(golden, now, set()) == every
    said = unreleased(
        "# C\n\n## Unreleased\n\n- `arbiter.poll` takes a unit, `arbiter.logs`\n\n## 1\n\n- `arbiter.new`\n"
    )
    assert unsaid(golden, now, said) == every[:2]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("arbiterctl --version", 0),
        ("arbiterctl --help", 0),
        ("arbiterctl dance", 2),
        ("arbiterctl status --socket {folder}/none.sock", 69),
        ("arbiterctl check --config {folder}/bad.toml", 78),
        ("arbiterctl check --config {folder}/none.toml", 78),
        ("arbiterctl replay {folder}/none.jsonl", 1),
        ("arbiterd --help", 0),
        ("arbiterd --dance", 2),
        ("arbiterd --config {folder}/bad.toml", 78),
    ],
)
def test_exit_statuses(words: str, status: int, tmp_path: Path) -> None:
    """0 done, 1 refused, 2 usage, 69 the daemon is not reachable, 78 the configuration."""
    (tmp_path / "bad.toml").write_text(
        f'mode = 3\n[arbiter]\nstate_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}"\n'
    )
    program, *argv = words.format(folder=tmp_path).split()
    found: object = 0
    try:
        if program == "arbiterd":
            found = daemon.main(argv)
        else:
            cli.main(argv)
    except SystemExit as ended:
        found = ended.code
    assert (found or 0) == status
