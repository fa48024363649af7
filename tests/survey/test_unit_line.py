"""ExecStart= with variables, by systemd's own rules, and what a unit's text sets."""

from __future__ import annotations

import pytest

from arbiterd.survey.unit_line import directives, expanded

ENV = {
    "MODEL": "org/name",
    "ARGS": '--dtype half --chat-template "a b.j2"',
    "PORT": "8001",
    "EMPTY": "",
}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["v", "serve", "${MODEL}"], ["v", "serve", "org/name"]),
        (["v", "serve", "$MODEL"], ["v", "serve", "org/name"]),
        (["v", "--port=${PORT}", "x${PORT}y"], ["v", "--port=8001", "x8001y"]),
        (["v", "$ARGS"], ["v", "--dtype", "half", "--chat-template", "a b.j2"]),
        (["v", "${ARGS}"], ["v", '--dtype half --chat-template "a b.j2"']),
        (["v", "$EMPTY", "$NOWHERE", "z"], ["v", "z"]),
        (["v", "${NOWHERE}"], ["v", ""]),
        (["v", "cost$$5", "a$MODEL"], ["v", "cost$5", "a$MODEL"]),
    ],
)
def test_variables_are_put_in_as_systemd_does(words: list[str], wanted: list[str]) -> None:
    """Braced anywhere and whole, bare as a word of its own and split."""
    found = expanded(words, ENV, complete=True)
    assert list(found.words) == wanted
    assert (found.missing, found.secret) == ((), ())


def test_a_secret_stays_as_it_is_written_and_a_missing_value_is_named() -> None:
    """No secret is put into a command; a variable of a file that could not be read is not empty."""
    env = {**ENV, "VLLM_API_KEY": "hush"}
    found = expanded(["v", "--api-key", "${VLLM_API_KEY}", "$MORE"], env, complete=False)
    assert found.words == ("v", "--api-key", "${VLLM_API_KEY}", "$MORE")
    assert (found.missing, found.secret) == (("MORE",), ("VLLM_API_KEY",))


def test_directives_of_a_unit_and_its_drop_ins() -> None:
    """Other sections, comments and what is taken back are left out; long lines are one."""
    unit = (
        "[Unit]\nDescription=x\n[Service]\n# User=no\nUser=alice\nLimitNOFILE=65536\n"
        "ExecStart=/v/bin/vllm serve \\\n   # a comment between\n   --dtype half \\\n\n   org/name\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    drop_in = "[Service]\nExecStart=\nExecStart=/b\nMemoryMax = 32G\n"
    assert directives([unit, drop_in]) == (
        ("User", "alice"),
        ("LimitNOFILE", "65536"),
        ("ExecStart", "/b"),
        ("MemoryMax", "32G"),
    )
