"""The files of ``[gateway]``: what check says of a key file."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.errors import ConfigRefused

BASE = """\
mode = "A"
[gateway]
key_file = "{}"
[backends]
ollama = {{ models = ["m"] }}
[modes.A]
ollama = {{ gpu = 0 }}
"""


def _said(tmp_path: Path, key_file: str) -> list[str]:
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(BASE.format(key_file))
    try:
        return [str(one) for one in load(path, {}).warnings]
    except ConfigRefused as refused:
        return [str(one) for one in refused.problems]


@pytest.mark.parametrize(
    ("text", "mode", "wanted"),
    [
        ("sk-1\n", 0o600, ""),
        ("# none\n\n", 0o600, "holds no key: every client would get 401"),
        ("sk-1\n", 0o644, "can be read by every user of this host; chmod 600"),
        (None, 0o600, "cannot be read: No such file or directory; write one key a line into it"),
    ],
)
def test_what_check_says_of_a_key_file(
    tmp_path: Path, text: str | None, mode: int, wanted: str
) -> None:
    """At the line of the key, with what would be right; no key is ever printed."""
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    said = _said(tmp_path, str(file))
    if not wanted:
        assert said == []
        return
    (one,) = said
    assert wanted in one
    assert ":3: gateway.key_file: " in one
    assert "sk-1" not in one


def test_a_relative_key_file_is_refused(tmp_path: Path) -> None:
    """Relative to what, nobody can tell."""
    assert any("key_file" in one for one in _said(tmp_path, "keys"))


def test_keys_without_doors_are_an_error(tmp_path: Path) -> None:
    """Nobody would ask for them."""
    file = tmp_path / "keys"
    file.write_text("sk-1\n")
    file.chmod(0o600)
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(BASE.format(file).replace("[gateway]", "[gateway]\nenabled = false"))
    with pytest.raises(ConfigRefused) as refused:
        load(path, {})
    (one,) = refused.value.problems
    assert (one.line, one.key) == (4, "gateway.key_file")
    assert "write enabled = true" in one.right
