"""Which values are secret, and every form in which one is hidden."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiterd.secrets.redact import HIDDEN, LEAST, Redactor
from arbiterd.secrets.values import Secrets, found_in, is_secret

FAR_S = 5.0  # of CPU: what begins anew at each character takes minutes for such texts
KEY = "sk-prod/9f+8\"e'7d=6c&5b"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        json.dumps({"k": KEY}),
        json.dumps(json.dumps({"k": KEY})),
        f"GET /v1?api_key={quote(KEY, safe='')} HTTP/1.1",
        f"GET /v1?api_key={quote(KEY, safe='').lower()}",
        f"GET /v1?api_key={quote_plus(KEY)}",
        repr({"k": KEY}),
        "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode(),
        "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode(),
        "Basic " + base64.urlsafe_b64encode(f"u:{KEY}".encode()).decode(),
        f"two {KEY} and {KEY}{KEY}",
    ],
)
def test_a_value_is_hidden_in_every_form(text: str) -> None:
    """No eight characters of it are left, in whichever form a program writes it."""
    hidden = Redactor([KEY]).text(text)
    assert HIDDEN in hidden
    for form in (KEY, quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()):
        assert not any(form[at : at + 8] in hidden for at in range(len(form) - 7)), hidden


def test_values_that_contain_or_overlap_one_another_leave_nothing() -> None:
    """Neither the longer one's rest nor what two that overlap do not share."""
    one = Redactor(["abcdefgh", "abcdefgh-long", "gh-longer-9"])
    assert one.text("<abcdefgh-longer-9>") == f"<{HIDDEN}>"
    assert one.text("<abcdefgh>") == f"<{HIDDEN}>"


def test_a_secret_broken_by_line_ends_is_hidden_whole() -> None:
    """A long line of output comes as several; so does a value that has lines itself."""
    lines = ("start", f"key={KEY[:9]}", KEY[9:12], f"{KEY[12:]} end", "next")
    assert Redactor([KEY]).lines(lines) == ("start", f"key={HIDDEN}", "", " end", "next")
    pem = "-----BEGIN-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END-----"
    shown = Redactor([pem]).text(f"loaded\n{pem}\nand {pem.splitlines()[1]}")
    assert "MIIEvQ" not in shown
    assert "kqhkiG" not in shown
    assert shown.count("\n") == 5


@given(st.lists(st.text(min_size=LEAST, max_size=20), min_size=1, max_size=4), st.text())
def test_no_value_stands_in_the_text_any_more(values: list[str], rest: str) -> None:
    """Whatever the values and the text around them are."""
    plain = [one.strip() for one in values if len(one.strip()) >= LEAST]
    shown = Redactor(values).text(rest + "".join(values) + rest)
    for one in plain:
        assert one.replace("\n", "") not in shown.replace("\n", "").replace(HIDDEN, "\0")


@pytest.mark.parametrize("text", ["a" * 100_000, ".".join("a" * 20_000), "-" * 100_000 + "=", "KEY" + "MAX" * 30_000 + "=x"],
                         ids=["word", "dots", "dashes", "name"])  # fmt: skip
def test_a_text_is_read_once_whatever_it_holds(text: str) -> None:
    """A word, a deep table, a name without end: a regular expression holds every thread of the daemon up."""
    began = time.thread_time()
    for one in (f'x = "{text}"', f"[{text}", f'env = {{ {text} = "y" }}', f"{text}\n"):
        found_in(one, {"GPU_ARBITER_X": text})
    assert time.thread_time() - began < FAR_S


def test_a_short_value_hides_nothing() -> None:
    """Seven characters may be any word."""
    assert Redactor(["running"]).text("running") == "running"


def test_documents_keep_their_shape_and_numbers() -> None:
    """Keys and strings are hidden; a number that looks like a key stays a number."""
    one = Redactor(["12345678", KEY])
    text = json.dumps({"total": 12345678, "why": f"x{KEY}", KEY: ["12345678"]})
    assert json.loads(one.json(text)) == {"total": 12345678, "why": f"x{HIDDEN}", HIDDEN: [HIDDEN]}
    page = 'a{why="k 12345678"} 12345678\n'
    assert one.labels(page) == f'a{{why="k {HIDDEN}"}} 12345678\n'


def test_names_that_tell_a_secret() -> None:
    """By their words in any case; files, tokenizers and counts of tokens are none."""
    for name in (
        "HF_TOKEN",
        "--api-key",
        "apiKey",
        "my_secret",
        "DB_PASSWORD",
        "x-auth",
        "AUTHKEY2",
    ):
        assert is_secret(name), name
    for name in (
        "--tokenizer",
        "TOKENIZERS_PARALLELISM",
        "--max-num-batched-tokens",
        "--ssl-keyfile",
        "--return-tokens-as-token-ids",
        "--allow-credentials",
        "eos_token_id",
    ):
        assert not is_secret(name), name
    assert is_secret("DSN", ["dsn"])
    assert is_secret("--db-dsn", ["DB_DSN"])
    assert not is_secret("DSN")


CONFIG = """
mode = "A"
[gateway]
key_file = "{folder}/doors"
[backends.vllm]
command = ["env", "IN_ENV_KEY=v-in-env-word", "vllm", "serve", "Qwen/Qwen2.5-3B-Instruct", "--api-key", "v-first-key",
  "v-second-key", "--port=1", "--lora-token=v-equals-sign", "-H", "Authorization: Bearer v-header-bearer",
  "--tokenizer", "Qwen/Qwen2.5-3B-Instruct", "--proxy", "http://me:v-url%2Fuserinfo@proxy:3128/x",
  "--extra", '{{"api_key": "v-json-value"}}']
env = {{ HF_TOKEN = "v-inline-token", DSN = "v-listed-value", PLAIN = "v-plain-value", KEYS = "v-list-one,v-list-two" }}
env_file = "{folder}/env"
secrets = ["DSN", "ODD"]
[modes.A]
vllm = {{ gpu = 0, env = {{ MODE_SECRET = "v-of-a-mode" }} }}
"""


def test_secrets_are_found_wherever_a_configuration_has_them(tmp_path: Path) -> None:
    """Inline, in words, headers and URLs, in a mode, a listed name, env_file, key_file, the environment."""
    (tmp_path / "doors").write_text("# ours\nv-door-key-1\nv-door-key-2\n")
    (tmp_path / "env").write_text(
        'FILE_TOKEN="v-from-file"\nODD=v-odd-listed\nPLAIN=v-file-plain\n'
    )
    one = Secrets({"GPU_ARBITER_BACKENDS__VLLM__ENV__X_TOKEN": "v-by-environ"})
    one.accept(CONFIG.format(folder=tmp_path))
    hidden = [
        "v-in-env-word", "v-first-key", "v-second-key", "v-equals-sign", "v-header-bearer",
        "v-url%2Fuserinfo", "v-url/userinfo", "v-json-value", "v-inline-token", "v-listed-value",
        "v-list-one", "v-list-two", "v-of-a-mode", "v-door-key-1", "v-door-key-2", "v-from-file",
        "v-odd-listed", "v-by-environ",
    ]  # fmt: skip
    for value in hidden:
        assert one.redactor.text(value) == HIDDEN, value
    for value in ("v-plain-value", "v-file-plain", "Qwen/Qwen2.5-3B-Instruct", "vllm", "serve"):
        assert one.redactor.text(value) == value, value


def test_a_changed_env_file_is_read_and_the_old_value_stays_known(tmp_path: Path) -> None:
    """The engine may still run with the value that the file has lost."""
    file = tmp_path / "env"
    file.write_text("A_KEY=before-it-changed\n")
    one = Secrets({})
    one.accept(f'[backends.vllm]\nenv_file = "{file}"\n')
    file.write_text("A_KEY=after-it-has-changed\n")
    one.look()
    assert one.redactor.text("before-it-changed after-it-has-changed") == f"{HIDDEN} {HIDDEN}"


def test_a_text_that_is_no_toml_is_read_by_its_pairs() -> None:
    """Its problems are told as well, and may quote it."""
    found = found_in('[backends.vllm\nenv = { HF_TOKEN = "v-broken-file" }', {})
    assert "v-broken-file" in found.values


def test_a_text_that_is_nested_beyond_any_use_is_read_by_its_pairs() -> None:
    """It is refused; its secrets are hidden in the words that say so."""
    deep = ".".join(["a"] * 5000)
    found = found_in(f'[{deep}]\nHF_TOKEN = "v-deep-value"\n', {})
    assert "v-deep-value" in found.values


def test_files_that_are_none_are_left(tmp_path: Path) -> None:
    """A folder, a device or a pipe in place of env_file holds nothing and stops nothing."""
    for path in (str(tmp_path), "/dev/zero", str(tmp_path / "missing")):
        one = Secrets({})
        one.accept(f'[backends.vllm]\nenv_file = "{path}"\n')
        one.read(Path(path))
        assert one.redactor.text("plain words here") == "plain words here"


def test_half_a_surrogate_pair_ends_no_answer() -> None:
    """A client or an engine may write one as an escape; a secret may hold one: it is hidden, and what is
    left has UTF-8.
    """
    redactor = Redactor(["topsecret-1", "half-\ud83d-pair-key"])
    body = json.dumps({"a": "topsecret-1 \ud83d", "half-\ud83d-pair-key": "ü \udfff"})
    made = redactor.json(body)
    assert json.loads(made.encode()) == {"a": f"{HIDDEN} \ud83d", HIDDEN: "ü \udfff"}
    assert redactor.json('{"a":"topsecret-1 ü"}\n').endswith("}\n")
