"""Which values are secret: by the name of their variable, option or header, or as the configuration lists
them. Found in the file's text (also one that is refused), GPU_ARBITER_ variables, env_files, key_file.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import threading
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from arbiterd.files import bounded, env_text
from arbiterd.secrets.redact import Redactor

# By the words of the name. What ends in FILE, PATH or SOCK names a file; tokenizers and numbers of
# tokens are no secrets, and hiding a model's name would make every message useless.
_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH", re.IGNORECASE)
_PUBLIC = re.compile(
    r"TOKENI[ZS]|(?:MAX|MIN|NUM|BATCHED|PER)[-_A-Z]*TOKENS|TOKENS?[-_](?:ID|DETAILS|AS|THRESHOLD|BUDGET|LIMIT)"
    r"|(?:BOS|EOS|PAD|UNK|SEP|CLS|MASK|STOP|SPECIAL|IMAGE|AUDIO|VIDEO)[-_]TOKEN|ALLOW[-_]CREDENTIALS"
    r"|(?:FILE|FILES|PATH|PATHS|DIR|SOCK|AUTHOR|AUTHORS)$",
    re.IGNORECASE,
)
NAME_MAX = 256  # characters; of a longer one only what makes it secret is looked for
# A name begins where a word begins, and gives nothing back: any text is read once, whatever it holds.
_PAIR = re.compile(
    r"""(?<![\w.-])(?:(?![A-Za-z_])[\w.-])*+([A-Za-z_][\w.-]*+)["'\\]*+\s*[=:]\s*["'\\]*(?:(?:Bearer|Basic|Token|Digest)\s+)?([^\s"'\\,;&}\])>]+)"""
)
_USERINFO = re.compile(r"://([^/\s@\"']+)@")
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
_MANY = ("api-key",)  # vLLM takes several behind one flag
MOST = 1024 * 1024  # bytes read of one file
_FILES = frozenset({"env_file", "key_file"})


def is_secret(name: str, listed: Iterable[str] = ()) -> bool:
    """Whether the value under this name is a secret. ``listed``: names that the file lists."""
    plain = _plain(name)
    if any(plain == _plain(one) for one in listed):
        return True
    return bool(_NAME.search(name)) and not (len(name) <= NAME_MAX and _PUBLIC.search(name))


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


@dataclass(slots=True)
class Found:
    """Secrets of one configuration. ``files``: that hold more of them, by the key that names them."""

    values: set[str] = field(default_factory=set)
    files: set[tuple[str, str]] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)

    # -- values --------------------------------------------------------------------------------
    def variables(self, env: Mapping[str, object]) -> None:
        """An environment: by name, and what stands within a value (a URL, a header)."""
        for name, value in env.items():
            if is_secret(name, self.listed):
                self.values.add(str(value))
            self.text(str(value))

    def words(self, words: Sequence[str]) -> None:
        """A command line: ``--api-key X``, ``--api-key=X``, ``NAME=X``, headers, scripts."""
        hide = many = False
        for word in words:
            if _FLAG.fullmatch(word):
                hide = is_secret(word, self.listed)
                many = _plain(word).replace("_", "-") in _MANY
                continue
            if hide and not word.startswith("-"):
                self.values.add(word)
                hide = many
                continue
            hide = False
            name, given, value = word.partition("=")
            if given and is_secret(name, self.listed):
                self.values.add(value)
            self.text(word)
            if " " in word:
                self._script(word)

    def _script(self, text: str) -> None:
        try:
            words = shlex.split(text)
        except ValueError:
            return
        if len(words) > 1:
            self.words(words)

    def text(self, text: str) -> None:
        """Pairs of name and value, and who is named in a URL."""
        for match in _PAIR.finditer(text):
            if is_secret(match[1], self.listed):
                self.values |= {match[2], unquote(match[2])}
        for match in _USERINFO.finditer(text):
            whole = match[1]
            self.values |= {whole, unquote(whole)}
            if ":" in whole:
                word = whole.split(":", 1)[1]
                self.values |= {word, unquote(word)}

    # -- the configuration ---------------------------------------------------------------------
    def table(self, value: object, key: str = "") -> None:
        """A table of the file, whatever its shape: it may be one that is refused."""
        if isinstance(value, Mapping):
            if key == "env":
                self.variables(value)
            for name, one in value.items():
                self.table(one, str(name))
        elif isinstance(value, list):
            if all(isinstance(one, str) for one in value):
                self.words(value)
            for one in value:
                self.table(one) if isinstance(one, Mapping | list) else None
        elif isinstance(value, str):
            if key in _FILES and value:
                self.files.add((key, value))
            self.text(value)
            if key in ("env", "command"):
                self.words((value,))

    def environment(self, environ: Mapping[str, str]) -> None:
        """Keys of the file that variables give: GPU_ARBITER_BACKENDS__VLLM__ENV__HF_TOKEN."""
        for name, value in environ.items():
            if not name.upper().startswith("GPU_ARBITER_"):
                continue
            key = name.rsplit("__", 1)[-1]
            if key.lower() in _FILES:
                self.files.add((key.lower(), value))
            elif is_secret(key, self.listed):
                self.values.add(value)
            self.text(value)
            self._script(value)


def _listed(value: object) -> Iterator[str]:
    """Every name in a ``secrets = [...]``."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key == "secrets" and isinstance(one, list):
                yield from (name for name in one if isinstance(name, str))
            yield from _listed(one)
    elif isinstance(value, list):
        for one in value:
            yield from _listed(one)


def found_in(text: str, environ: Mapping[str, str]) -> Found:
    """The secrets of a configuration's text. One that is no TOML, or far too deep, is read by its pairs."""
    out = Found()
    try:
        raw: dict[str, Any] = tomllib.loads(text)
        out.listed |= set(_listed(raw))
        out.table(raw)
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError; a table 1,000 deep
        out.text(text)
    out.environment(environ)
    return out


class Secrets:
    """Keeps a Redactor knowing what the configurations and the files they name hold."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.redactor = Redactor()
        self._environ = environ
        self._lock = threading.Lock()
        self._files: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._listed: set[str] = set()

    def accept(self, text: str) -> None:
        """A configuration's text, in force or refused; then its files."""
        found = found_in(text, self._environ)
        with self._lock:
            self._listed |= found.listed
            for one in found.files:
                self._files.setdefault(one, (0, 0, 0))
        self.redactor.learn(found.values)
        self.look()

    def of(self, path: Path) -> Redactor:
        """What hides the secrets of this configuration."""
        self.read(path)
        return self.redactor

    def read(self, path: Path) -> None:
        """The configuration at this path, if it can be read; whether it is good is another question."""
        text = _text(str(path))
        if text:
            self.accept(text)

    def look(self) -> None:
        """Read the files that have changed. Waits for the disk: not for the loop."""
        with self._lock:
            files = dict(self._files)
        for (key, path), stamp in files.items():
            try:
                info = os.stat(path)
            except OSError:
                continue
            now = (info.st_mtime_ns, info.st_ino, info.st_size)
            if now == stamp or not stat.S_ISREG(info.st_mode):
                continue
            text = _text(path)
            if key == "key_file":
                self.redactor.learn(env_text.keys_in(text))
            else:
                found = Found(listed=self._listed)
                found.variables(env_text.parse(text))
                self.redactor.learn(found.values)
            with self._lock:
                self._files[key, path] = now


def _text(path: str) -> str:
    """A regular file, its first MOST bytes; "" when it cannot be read."""
    with suppress(OSError):
        return bounded.aside(path, lambda: _regular(path))
    return ""


def _regular(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read(MOST).decode(errors="replace")
