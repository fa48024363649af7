"""Files of variables: written so that systemd, and we, read back exactly what was meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arbiterd.files import env_text

VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'\\$`# ="))
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_what_is_written_is_read_back(env: dict[str, str]) -> None:
    """Quotes, backslashes, newlines, dollars and every script included."""
    assert env_text.parse(env_text.render(env)) == env


@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    """Never an exception, and only names and values that systemd would hand on."""
    for name, value in env_text.parse(text).items():
        assert env_text.usable(name, value)
