"""The edit of the configuration: exactly the entry's keys, comments kept, whatever its form."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbiterd.engines import engine_of
from arbiterd.engines.base import LaunchContext
from arbiterd.engines.owned_env import owned
from arbiterd.errors import ArbiterError
from arbiterd.model.devices import Device
from arbiterd.model.settings import BackendSettings, Kind
from arbiterd.survey.facts import UnitFacts
from arbiterd.survey.handover import KEYS, REPLACED, edit, entry_of, handover

UNIT = UnitFacts(
    "ollama.service",
    active="active",
    enabled="enabled",
    user="ollama",
    group="ollama",
    command=("/usr/local/bin/ollama", "serve"),
    environment=(
        ("PATH", "/usr/bin:/bin"),
        ("OLLAMA_MODELS", "/srv/ollama models"),
        ("OLLAMA_HOST", "0.0.0.0:11434"),
        ("OLLAMA_ORIGINS", "*"),
        ("OLLAMA_NUM_PARALLEL", "4"),
        ("HTTPS_PROXY", "http://proxy:3128"),
    ),
)
INLINE = """\
mode = "A"                       # the mode
[backends]                       # engines
vllm = { command = ["vllm", "serve", "m"] }
ollama = { models = ["qwen2.5:3b"], env = { A = "1" } } # the first is kept warm

[modes.A]
ollama = { gpu = 0 } # all of it
"""
TABLE = """\
mode = "A"
[backends.ollama]
models = ["qwen2.5:3b"] # the first is kept warm
command = ["ollama", "serve"]

# all share one GPU
[modes.A]
ollama = { gpu = 0 }
"""
SUBTABLE = """\
mode = "A"
[backends.vllm]
command = ["vllm", "serve", "m"]
[modes.A]
ollama = { gpu = 0 }
[backends.ollama] # out of order
models = []
[backends.ollama.env]
OLLAMA_MODELS = "/old" # was here
A = "1"

[arbiter]
poll = "1s"
"""
DOTTED = """\
mode = "A"
backends.ollama.models = []
[modes.A]
ollama = { gpu = 0 }
"""


@pytest.mark.parametrize("text", [INLINE, TABLE, SUBTABLE, DOTTED])
def test_the_entry_says_what_the_unit_said_and_nothing_else_changes(text: str) -> None:
    """User, command and environment; what is the arbiter's own is listed with what decides it now."""
    made = handover(text, "ollama", UNIT, {}, "/etc/x.env")
    entry = entry_of(made.text, "ollama")
    before = entry_of(text, "ollama")
    assert entry["user"] == "ollama"
    assert entry["command"] == ["/usr/local/bin/ollama", "serve"]
    assert entry["models"] == before["models"]
    assert entry["env"] == {
        **before.get("env", {}),
        "OLLAMA_MODELS": "/srv/ollama models",
        "OLLAMA_ORIGINS": "*",
        "HTTPS_PROXY": "http://proxy:3128",
    }
    assert [one.name for one in made.replaced] == ["PATH", "OLLAMA_HOST", "OLLAMA_NUM_PARALLEL"]
    assert {one.name: one.by for one in made.replaced}["OLLAMA_NUM_PARALLEL"] == "parallel"
    for line in text.splitlines():
        comment = line.partition("#")[2]
        assert comment in made.text
    rest = tomllib.loads(made.text)
    rest["backends"]["ollama"] = before
    assert rest == tomllib.loads(text)
    if text is DOTTED:  # tomlkit cannot take keys out of this form: refused, never half done
        with pytest.raises(ArbiterError, match="by hand: take command out, take user out"):
            edit(made.text, "ollama", {key: before.get(key) for key in KEYS})
        return
    back = edit(made.text, "ollama", {key: before.get(key) for key in KEYS})
    assert tomllib.loads(back) == tomllib.loads(text)


def test_new_keys_stand_in_their_own_table() -> None:
    """Not behind the comment that belongs to the next one."""
    lines = handover(TABLE, "ollama", UNIT, {}, "").text.splitlines()
    assert lines.index('user = "ollama"') < lines.index("# all share one GPU")
    assert lines[lines.index("# all share one GPU") + 1] == "[modes.A]"


def test_a_unit_without_user_is_root_written_out() -> None:
    """The arbiter's default would be gpu-engines."""
    unit = UnitFacts("ollama.service", command=("/usr/bin/ollama", "serve"))
    assert entry_of(handover(INLINE, "ollama", unit, {}, "").text, "ollama")["user"] == "root"


def test_secrets_stay_in_a_file() -> None:
    """One file without variables of ours is named; else a copy without them is written."""
    one = handover(INLINE, "ollama", UNIT, {"/etc/ollama.env": "TOKEN=hush\n"}, "/etc/copy.env")
    assert one.values["env_file"] == "/etc/ollama.env"
    assert one.env_text == ""
    files = {
        "/etc/a.env": "# c\nTOKEN=hush\nOLLAMA_HOST=0.0.0.0\n",
        "/etc/b.env": 'LONG="a \\\nb"\nOLLAMA_KEEP_ALIVE=-1 \\\n\n',
    }
    two = handover(INLINE, "ollama", UNIT, files, "/etc/copy.env")
    assert two.values["env_file"] == two.env_path == "/etc/copy.env"
    assert two.env_text == '# c\nTOKEN=hush\nLONG="a \\\nb"\n'
    assert "hush" not in two.text
    hidden = [(r.name, r.value) for r in two.replaced if not r.value]
    assert hidden == [("OLLAMA_HOST", ""), ("OLLAMA_KEEP_ALIVE", "")]


def test_a_missing_backend_is_a_sentence() -> None:
    """Not a KeyError."""
    with pytest.raises(ArbiterError, match=r"no \[backends\.ollama\]"):
        handover('mode = "A"\n[backends]\n', "ollama", UNIT, {}, "")


def test_everything_the_engine_sets_is_known_as_the_arbiters() -> None:
    """A variable that the arbiter overwrites must be listed, never written as if it counted."""
    backend = BackendSettings("ollama", Kind.OLLAMA, ("ollama", "serve"), 11434, 21434)
    card = Device("GPU-1", 0, "NVIDIA GeForce RTX 4090", "b", 24 << 30, 0)
    for version in ("0.33.0", "0.20.0"):
        context = LaunchContext(
            backend=backend,
            devices=(card,),
            cap_bytes=4 << 30,
            headroom_bytes=1 << 30,
            others_caps_bytes=0,
            host="127.0.0.1",
            port=21434,
            grpc_port=0,
            files_dir="/x",
            intent="i",
            version=version,
        )
        assert set(engine_of(Kind.OLLAMA).launch(context).env) <= set(REPLACED)


KEY = st.from_regex(r"[A-Z_]{1,6}", fullmatch=True).filter(lambda key: key not in REPLACED)
VALUE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
ENV = st.dictionaries(KEY, VALUE, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([INLINE, TABLE, SUBTABLE]), ENV, VALUE)
def test_any_environment_is_written_as_it_is_and_taken_back(
    text: str, env: dict[str, str], user: str
) -> None:
    """Quotes, hashes, brackets, backslashes: data in, the same data out, and back again."""
    unit = UnitFacts(
        "o.service", user=user, command=("/o", "serve"), environment=tuple(env.items())
    )
    made = handover(text, "ollama", unit, {}, "")
    entry: dict[str, Any] = entry_of(made.text, "ollama")
    before = entry_of(text, "ollama")
    assert entry.get("env", {}) == {**before.get("env", {}), **env}
    assert entry["user"] == (user or "root")
    back = edit(made.text, "ollama", {key: before.get(key) for key in KEYS})
    assert tomllib.loads(back) == tomllib.loads(text)


def test_what_the_arbiter_decides_is_not_handed_over() -> None:
    """Else the file that is written would be refused."""
    ollama = BackendSettings("ollama", Kind.OLLAMA, ("ollama", "serve"), 11434, 21434)
    assert owned(ollama).keys() <= REPLACED.keys()
